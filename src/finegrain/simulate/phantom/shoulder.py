"""The shoulders: the widest and most attenuating section of the body, whose bones throw streaks across it.

Coordinates in mm of the region's own: u to the image's right, v to the back, z up from the centres of the humeral heads. The
arms lie beside the body. Sizes are those of textbooks of anatomy (humeral head 44–50 mm, body about 424 × 210 mm across the
heads); single numbers were set by eye, no atlas was copied.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from finegrain.simulate.phantom.drawing import FAR_MM, Ellipsoid, Frame, blend, common, superellipse_distance
from finegrain.simulate.phantom.person import LUNG_TEXTURE_SD, Lesion, Person, person
from finegrain.simulate.phantom.section import LABELS, Section
from finegrain.simulate.phantom.texture import FloatArray, Waves
from finegrain.simulate.phantom.trees import Tubes, join, murray_tree, polyline

Z_RANGE_MM = (-35.0, 36.0)
"""Lowest and highest z that is covered: upper chest to the top of the shoulder's joint."""

THYROID_HU = {"native": 100.0, "arterial": 170.0, "portal": 150.0}
"""Mean HU by phase: the gland's own iodine makes it bright before any is given (textbook: 80–120)."""

SIDES = (-1.0, 1.0)


@lru_cache(maxsize=4)
def shoulders(seed: int) -> Person:
    """The person of a seed, in the shoulders' frame and with their tubes and lesions."""
    who = person(seed)
    rng = np.random.default_rng([20_243, seed])
    warp = Waves.draw(rng, rms=2.0), Waves.draw(rng, rms=2.0)
    frame = Frame(
        stretch_x=rng.uniform(0.94, 1.04), stretch_y=rng.uniform(0.94, 1.08), shift_mm=(rng.uniform(-3, 3), rng.uniform(-5, 5)),
        warp_x=warp[0], warp_y=warp[1],
    )  # fmt: skip
    hu = who.hu | {"thyroid": THYROID_HU[who.phase] + rng.normal(0, 8)}
    return replace(who, frame=frame, hu=hu, organs={}, tubes=_tubes(rng), lesions=_lesions(rng))


def _both(points: list[tuple[float, float, float]], radius_mm: float | list[float]) -> Tubes:
    return join(*(polyline([(side * u, v, z) for u, v, z in points], radius_mm) for side in SIDES))


def _tubes(rng: np.random.Generator) -> dict[str, Tubes]:
    n = 130
    side = rng.choice(SIDES, n)
    roots = np.column_stack([side * rng.uniform(8, 62, n), rng.uniform(-20, 52, n), rng.uniform(-60, 8, n)])

    def inside(p: np.ndarray) -> np.ndarray:
        u, v, z = p.T
        return ((np.abs(u) - 37) / 27) ** 2 + ((v - 12) / 34) ** 2 + ((z + 42) / 44) ** 2 < 1

    aim = np.column_stack([0.4 * side, rng.normal(0, 0.6, n), rng.uniform(0.2, 1, n)])
    aim /= np.linalg.norm(aim, axis=1, keepdims=True)
    keep = inside(roots)
    return {
        "lung vessels": murray_tree(
            rng, roots_mm=roots[keep], directions=aim[keep], radii_mm=rng.uniform(0.7, 1.5, int(keep.sum())), inside=inside,
            stop_radius_mm=0.32,
        ),
        "arteries": join(
            _both([(18, 4, -60), (20, 0, -18), (23, -4, 12), (25, -2, 60)], 3.6),
            _both([(19, 4, -28), (34, -4, -6), (58, -16, -4), (94, -22, -14), (122, 0, -36), (130, 14, -70)],
                  [4.6, 4.6, 4.4, 4, 3.6, 3.4]),
            _both([(24, 6, -6), (17, 24, 16), (15, 28, 60)], 2.0),
        ),
        "veins": join(
            _both([(22, -14, -60), (28, -18, -24), (34, -12, 4), (36, -6, 60)], [6, 6.5, 6.0 * rng.uniform(0.7, 1.3), 5.5]),
            _both([(28, -20, -24), (54, -36, -14), (88, -36, -20), (118, -10, -42)], [6, 6, 5.5, 4.5]),
        ),
        "airway": polyline([(0, 6, -80), (0, 0, 0), (0, -6, 60)], 8.5 * rng.uniform(0.88, 1.12)),
        "gullet": polyline([(4, 22, -80), (5, 15, 0), (3, 10, 60)], 6.0),
        "humerus": _both([(160, 0, 0), (164, 2, -26), (168, 4, -90)], [15, 13.5, 12]),
        "collarbone": _both([(16, -50, -26), (48, -60, -8), (88, -42, 12), (122, -16, 24), (146, -4, 26)], [8.5, 6, 5.5, 6, 7]),
        "ribs": join(
            _both([(24, 46, 2), (52, 36, 0), (62, 8, -6), (50, -24, -18), (24, -44, -34)], [5, 4.5, 4.5, 4.5, 5]),
            _both([(24, 52, -14), (62, 50, -20), (82, 20, -28), (78, -14, -42), (50, -46, -62)], [5, 4.5, 4.2, 4.2, 4.5]),
            _both([(24, 56, -36), (66, 58, -46), (92, 30, -58), (92, -10, -74)], [5, 4.5, 4.2, 4.2]),
        ),
    }  # fmt: skip


def _lesions(rng: np.random.Generator) -> tuple[Lesion, ...]:
    out = []
    for _ in range(int(rng.integers(2, 6))):
        r = rng.uniform(3, 8)
        place = [(62, -14, 4), (120, 6, -28), (14, -12, -6)][rng.integers(3)]
        center = (
            float(rng.choice(SIDES)) * (place[0] + rng.normal(0, 5)),
            place[1] + rng.normal(0, 4),
            place[2] + rng.normal(0, 6),
        )
        out.append(Lesion("node", Ellipsoid(center, (r, 0.8 * r, 1.1 * r), rng.uniform(0, 3)), rng.normal(60, 15), 0.7))
    return tuple(out)


def _outline(s: Section) -> FloatArray:
    """Distance to the outer face of the muscles, mm: chest, two shoulders, and the neck that they meet."""
    c, z = s.canvas, s.z
    chest = superellipse_distance(c.u, c.v, float(np.interp(z, [-40, 0, 20, 40], [142, 138, 118, 88])), 82 - 0.25 * z, 2.4)
    parts = [chest]
    for side in SIDES:
        top = float(np.clip(1 - (max(z, -6.0) + 6) ** 2 / 46**2, 0.04, 1)) ** 0.5
        parts.append(c.ellipse(side * (150 - 3 * (1 - top)), 6, 47 * top, 49 * top))
    return blend(*parts, radius_mm=36)


def draw_shoulders(s: Section) -> None:
    """One slice of the shoulders, from the skin inwards and from soft to hard."""
    outline = _draw_wall(s)
    _draw_fat_planes(s, outline)
    _draw_lungs(s)
    _draw_neck(s)
    _draw_bones(s, outline)
    for lesion in s.person.lesions:
        s.lesion(lesion, np.ones_like(s.canvas.u))


def _draw_wall(s: Section) -> FloatArray:
    c = s.canvas
    outline = _outline(s)
    wave = s.person.outline.on_grid(c.axis_mm, c.axis_mm, s.z)
    skin = outline - np.float32(s.person.fat * 7) * (1 + 0.07 * wave) - 3
    c.paint(c.coverage(skin), s.person.hu["skin"] + 10 * s.soft, LABELS["soft tissue"])
    c.paint(c.coverage(skin + 1.8), s.tissue("fat"), LABELS["fat"])
    c.paint(c.coverage(skin + 1.8) * s.sheets(0.35, offset_mm=311) * np.float32(0.6), -30.0, LABELS["soft tissue"])
    muscle = outline + 1.5 * s.smooth
    c.paint(c.coverage(muscle), s.tissue("muscle"), LABELS["soft tissue"])
    c.paint(c.coverage(muscle + 2) * s.sheets(1.0, offset_mm=211) * np.float32(0.6), s.person.hu["fat"] + 15, LABELS["fat"])
    return outline


def _draw_fat_planes(s: Section, outline: FloatArray) -> None:
    """Fat of armpit and collarbone pit, and between deltoid, chest and shoulder-blade muscles."""
    c, z = s.canvas, s.z
    gap = np.clip(0.6 + 0.9 * s.person.smooth.sample(c.u, c.v, z, offset_mm=97), 0, 1.8)
    layer = np.minimum(np.abs(outline + 13 + 2 * s.smooth) - 0.9 * gap, np.abs(outline + 27 + 3 * s.smooth) - 0.8 * gap)
    c.paint(c.coverage(layer) * np.float32(0.9), s.tissue("fat"), LABELS["fat"])
    for side in SIDES:
        pit = blend(
            c.ellipse(side * 70, -20, 30, 17, side * 0.2), c.ellipse(side * 112, -2, 20, 15, side * 0.6), radius_mm=10
        )  # fmt: skip
        c.paint(c.coverage(pit + 3 * s.smooth), s.tissue("fat") + 6, LABELS["fat"])
        c.paint(c.coverage(pit + 2) * s.sheets(0.5, offset_mm=511), -10.0, LABELS["soft tissue"])
        scalene = c.ellipse(side * 42, 14, 11, 13, side * 0.4)
        c.paint(c.coverage(scalene + 1.5 * s.smooth), s.tissue("muscle"), LABELS["soft tissue"])


def _draw_lungs(s: Section) -> None:
    c = s.canvas
    found = [s.ball(Ellipsoid((side * 37, 12, -42), (31, 39, 48)), wobble_mm=1.0) for side in SIDES]
    cover = np.zeros_like(c.u)
    for window, d in filter(None, found):
        c.paint(c.coverage(d - 3.5), s.tissue("fat")[window], LABELS["fat"], window)
        cover[window] = c.coverage(d)
    if cover.any():
        grain = s.person.lung.sample(c.u, c.v, s.z) * np.float32(s.person.texture)
        c.paint(cover, s.person.hu["lung"] + 12 * s.smooth + LUNG_TEXTURE_SD * grain, LABELS["lung"])
        c.paint(c.thin_tube_coverage(s.person.tubes["lung vessels"]) * cover, s.person.hu["lung vessel"], LABELS["vessel"])


def _draw_neck(s: Section) -> None:
    """Windpipe, gullet, thyroid and great vessels in the fat between chest and neck."""
    c, z, hu = s.canvas, s.z, s.person.hu
    fat = common(c.ellipse(0, -4, 34 - 0.2 * z, 27), -c.ellipse(0, 40, 20, 18))
    c.paint(c.coverage(fat + 2 * s.smooth), s.tissue("fat") + 8, LABELS["fat"])
    for side in SIDES:
        strap = c.ellipse(side * 16, -33, 15, 4.5, side * 0.35)
        c.paint(c.coverage(strap + 0.8 * s.smooth), s.tissue("muscle"), LABELS["soft tissue"])
        s.fill(Ellipsoid((side * 16, -4, 20), (9.5, 13, 26), side * 0.2), hu["thyroid"] + 8 * s.soft, "soft tissue", wobble_mm=1.0)
        longus = c.ellipse(side * 9, 24, 7, 4)
        c.paint(c.coverage(longus), s.tissue("muscle"), LABELS["soft tissue"])
    gullet = c.tube_distance(s.person.tubes["gullet"])
    if gullet is not None:
        c.paint(c.coverage(gullet), s.tissue("bowel wall"), LABELS["soft tissue"])
    for name, blood in (("veins", "vein"), ("arteries", "aorta")):
        d = c.tube_distance(s.person.tubes[name])
        if d is not None:
            c.paint(c.coverage(d - 1.0 + 0.4 * s.smooth), s.tissue("muscle") - 5, LABELS["soft tissue"])
            c.paint(c.coverage(d + 0.4 * s.smooth), hu[blood] + 4 * s.soft, LABELS["vessel"])
    air = c.tube_distance(s.person.tubes["airway"])
    if air is not None:
        c.paint(c.coverage(air - 1.6), hu["cartilage"] + 10 * s.soft, LABELS["soft tissue"])
        c.paint(c.coverage(air), -990.0, LABELS["airway"])


def _draw_bones(s: Section, outline: FloatArray) -> None:
    c, z = s.canvas, s.z
    for name, cortex in (("ribs", 1.1), ("collarbone", 1.6)):
        d = c.tube_distance(s.person.tubes[name])
        if d is not None:
            s.bone(common(d + 0.3 * s.smooth, outline + 3), cortex, marrow_sd=85)
    shaft = c.tube_distance(s.person.tubes["humerus"])
    for side in SIDES:
        parts = [_blade(s, side)]
        for body in (
            Ellipsoid((side * 126, 11, -4), (8, 16, 21), side * -0.35),
            Ellipsoid((side * 130, -20, 13), (7, 13, 8), side * 0.6),
            Ellipsoid((side * 158, 16, 31), (17, 24, 5.5), side * 0.2),
        ):
            if abs(z - body.center_mm[2]) < body.semi_axes_mm[2]:
                parts.append(c.ellipsoid(body))
        head = Ellipsoid((side * 157, 0, 0), (24, 24, 24))
        cleft = c.ellipsoid(Ellipsoid(head.center_mm, (27.5, 27.5, 27.5)))
        blade = common(blend(*parts, radius_mm=4) + 0.4 * s.smooth, -cleft, outline + 4)
        s.bone(blade, 1.4, marrow_sd=85)
        ends = [c.ellipsoid(head), c.ellipsoid(Ellipsoid((side * 170, -4, -6), (13, 15, 18)))]
        if shaft is not None:
            ends.append(np.where(side * c.u > 0, shaft, FAR_MM))
        s.bone(blend(*ends, radius_mm=4) + 0.4 * s.smooth, 1.2 if z > -18 else 2.8, marrow_sd=100)
    _draw_vertebra(s)


def _blade(s: Section, side: float) -> FloatArray:
    """Shoulder blade: a thin plate below its spine, the spine rising to the acromion above."""
    c, z = s.canvas, s.z
    lift = float(np.clip((z + 12) / 30, 0, 1))
    if z > 30:
        return np.full_like(c.u, FAR_MM)
    tip = (side * (80 + 30 * lift), 60 - 4 * lift)
    out = np.full_like(c.u, FAR_MM)
    if z < 16:
        out = np.minimum(out, s.plate([(side * 122, 20), (side * 104, 42), tip], [5.0, 1.8, 2.6]))
    if z > -22:
        out = np.minimum(
            out, s.plate([tip, (side * 126, 58 - 6 * lift), (side * (132 + 26 * lift), 50 - 14 * lift)], [3.0, 2.6, 4.0])
        )
    return out


def _draw_vertebra(s: Section) -> None:
    c, z = s.canvas, s.z
    place = (z + 60) % 19.0
    body = c.ellipse(0, 42, 15.5, 11.5) + 0.5 * s.smooth
    canal = c.ellipse(0, 62, 10.5, 7.5)
    arch = [c.ellipse(0, 63, 15, 11.5)]
    for side in SIDES:
        arch.append(c.ellipse(side * 26, 57, 13, 4.4, side * 0.15))
        arch.append(c.ellipse(side * 15, 60, 5.5, 6.5))
    if place > 7:
        arch.append(c.ellipse(0, 80, 2.8, 15))
    disc = place < 4
    if disc:
        c.paint(c.coverage(body), s.tissue("disc"), LABELS["soft tissue"])
    bone = blend(*arch, radius_mm=3) if disc else blend(body, *arch, radius_mm=3)
    s.bone(common(bone, 0.3 - canal), 1.2, marrow_sd=115)
    c.paint(c.coverage(canal + 0.6), s.person.hu["fat"] + 60, LABELS["fat"])
    c.paint(c.coverage(canal + 1.6), 14 + 3 * s.soft, LABELS["fluid"])
    c.paint(c.coverage(c.ellipse(0, 61.5, 6.5, 4.4)), s.person.hu["cord"] + 8, LABELS["soft tissue"])
