"""The head: scalp, skull, face with orbits and sinuses, brain with sulci and ventricles, vessels and lesions.

Coordinates in mm of the head's own: u to the image's right, v to the back, z up from the plane through the eyes and the ears'
canals; the vertex of the skull is at z = 112. Sizes are those of textbooks of anatomy (skull about 145 × 180 mm, wall 4–8 mm,
cortex 2.5–4 mm, globe 24 mm); single numbers were set by eye, no atlas was copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import expit

from finegrain.simulate.phantom.drawing import Ellipsoid, Frame, blend, common, ellipse_distance
from finegrain.simulate.phantom.person import Lesion, Person, person
from finegrain.simulate.phantom.section import LABELS, Section
from finegrain.simulate.phantom.texture import FloatArray, Waves
from finegrain.simulate.phantom.trees import Tubes, join, polyline

Z_RANGE_MM = (-30.0, 108.0)
"""Lowest and highest z that the head covers: maxillary sinuses to just below the top of the scalp."""

HU: dict[str, float] = {
    "grey": 38, "white": 29, "csf": 7, "dura": 52, "basal": 40, "cerebellum": 36, "vitreous": 10, "lens": 90, "nerve": 34,
    "mucosa": 30, "diploe": 420, "calcification": 160,
}  # fmt: skip
"""Mean HU at 120 kV without contrast; textbook ranges: grey matter 35–42, white matter 22–33, cerebrospinal fluid 0–15,
clotted blood 50–80, vitreous 5–15, lens 80–110, diploe 300–500."""

CONTRAST_GAIN: dict[str, float] = {"grey": 4, "white": 2, "basal": 4, "cerebellum": 4, "dura": 40, "mucosa": 40}
"""What iodine adds: little behind the blood-brain barrier (its blood share, 2–5 %, fills), much in dura and mucosa."""

VAULT_MM = (72.0, 91.0, 80.0)
"""Semi-axes of the outer table above its widest level: half width, half depth, height."""
VAULT_Z_MM = 32.0
BELOW_MM = 125.0
"""Vertical semi-axis below the widest level, where the skull narrows slowly."""


@dataclass(frozen=True)
class Head:
    """What is drawn by chance about one head, once."""

    person: Person
    """The same person as in the other regions, in the head's frame, with its tubes and lesions."""
    atrophy: float
    """0 for a young brain, 1 for wide sulci and ventricles."""
    wall_mm: float
    """Thickness of the skull's wall."""
    sinus: float
    """Size of the air spaces, 1 for the average."""


@lru_cache(maxsize=4)
def head(seed: int) -> Head:
    """The head of the person of a seed."""
    who = person(seed)
    rng = np.random.default_rng([20_241, seed])
    warp = Waves.draw(rng, rms=1.1, shortest_mm=70, longest_mm=250), Waves.draw(rng, rms=1.1, shortest_mm=70, longest_mm=250)
    frame = Frame(
        stretch_x=rng.uniform(0.94, 1.05), stretch_y=rng.uniform(0.94, 1.05), shift_mm=(rng.uniform(-4, 4), rng.uniform(-5, 5)),
        warp_x=warp[0], warp_y=warp[1],
    )  # fmt: skip
    gain = 0.0 if who.phase == "native" else 1.0 if who.phase == "portal" else 0.7
    hu = who.hu | {name: value + rng.normal(0, 0.8) + gain * CONTRAST_GAIN.get(name, 0) for name, value in HU.items()}
    atrophy = float(rng.beta(1.3, 1.8))
    return Head(
        person=replace(who, frame=frame, hu=hu, tubes=_tubes(rng, atrophy), lesions=_lesions(rng, hu)),
        atrophy=atrophy,
        wall_mm=rng.uniform(5.5, 8.0),
        sinus=rng.uniform(0.8, 1.2),
    )


def _mirrored(points: list[tuple[float, float, float]], radius_mm: list[float]) -> Tubes:
    return join(*(polyline([(side * u, v, z) for u, v, z in points], radius_mm) for side in (-1.0, 1.0)))


def _tubes(rng: np.random.Generator, atrophy: float) -> dict[str, Tubes]:
    wide = 0.75 + 0.75 * atrophy + rng.normal(0, 0.06)
    lateral = [
        _mirrored([(7, -36, 40), (9, -30, 46), (9, -12, 54), (11, 6, 58), (17, 22, 56), (25, 34, 48)],
                  [2.5 * wide, 4.5 * wide, 4.0 * wide, 4.2 * wide, 5.0 * wide, 6.0 * wide]),
        _mirrored([(25, 34, 48), (24, 46, 44), (21, 58, 42)], [6.0 * wide, 4.0 * wide, 1.0 * wide]),
        _mirrored([(25, 34, 48), (32, 24, 34), (33, 8, 20), (30, -4, 12)], [5.5 * wide, 3.0 * wide, 2.0 * wide, 1.2 * wide]),
    ]  # fmt: skip
    arteries = [
        polyline([(-7, 14, -34), (-2, 6, -14), (0, -1, 2), (0, 1, 12)], [1.7, 1.7, 1.6, 1.4]),
        _mirrored([(26, -4, -36), (24, -2, -22), (14, -6, -8), (8, -14, 4), (9, -16, 14), (10, -10, 18)],
                [2.4, 2.4, 2.2, 2, 1.9, 1.7]),
        _mirrored([(10, -10, 18), (22, -12, 20), (36, -10, 24), (42, 2, 34), (46, 14, 46)], [1.5, 1.4, 1.2, 0.9, 0.6]),
        _mirrored([(10, -10, 18), (2.5, -22, 22), (1.5, -38, 36), (1.5, -36, 56), (1.5, -10, 68)], [1.1, 1.1, 1.0, 0.8, 0.5]),
        _mirrored([(1, 1, 12), (10, 4, 16), (17, 18, 22), (14, 38, 28), (10, 58, 34)], [1.1, 1.1, 1.0, 0.8, 0.5]),
    ]  # fmt: skip
    side = float(rng.choice([-1.0, 1.0]))
    sinuses = [
        polyline([(0, 78, 22), (0, 86, 40), (0, 80, 68), (0, 60, 90), (0, 20, 105), (0, -30, 100)], [4.5, 4.2, 3.8, 3.2, 2.6, 1.2]),
        polyline([(0, 30, 36), (0, 54, 34), (0, 78, 22)], [1.6, 2.0, 2.6]),
        polyline([(0, 80, 20), (side * 32, 70, 14), (side * 56, 42, 8), (side * 50, 30, -14), (side * 38, 24, -36)],
                 [4.6, 4.2, 4.2, 4.4, 4.6]),
        polyline([(0, 80, 20), (-side * 32, 70, 13), (-side * 56, 42, 7), (-side * 50, 30, -14), (-side * 38, 24, -36)],
                 [3.0, 2.6, 2.8, 3, 3]),
    ]  # fmt: skip
    stem = polyline(
        [(0, 22, -45), (0, 19, -26), (0, 12, -10), (0, 11, 2), (0, 15, 14), (0, 18, 30)], [7.5, 8.5, 13.5, 14, 13, 12.5]
    )
    eye_muscles = join(
        _mirrored([(18, -71, 0), (16, -56, 2), (12, -40, 6)], [2.0, 2.6, 1.2]),
        _mirrored([(43, -70, 0), (34, -54, 2), (14, -38, 6)], [1.8, 2.4, 1.2]),
        _mirrored([(31, -70, 12), (25, -54, 12), (13, -39, 8)], [1.6, 2.4, 1.2]),
        _mirrored([(31, -70, -12), (25, -54, -9), (13, -39, 3)], [1.6, 2.4, 1.2]),
    )
    return {
        "ventricles": join(*lateral),
        "plexus": _mirrored([(14, 16, 56), (23, 31, 49), (28, 27, 40)], [1.4, 2.6, 1.6]),
        "arteries": join(*arteries),
        "sinuses": join(*sinuses),
        "stem": stem,
        "sylvian": _mirrored([(60, -16, 22), (44, -12, 26), (39, -2, 34), (42, 16, 46), (52, 24, 50)], [2.0, 1.6, 1.3, 1.2, 0.8]),
        "optic nerve": _mirrored([(30, -59, 0), (22, -48, 3), (13, -36, 7), (4, -22, 14)], [2.1, 1.8, 1.7, 1.6]),
        "eye muscles": eye_muscles,
        "ear canal": _mirrored([(80, 14, -2), (64, 13, 0), (52, 11, 1), (46, 9, 1)], [4.0, 3.4, 3.2, 4.5]),
    }


def _lesions(rng: np.random.Generator, hu: dict[str, float]) -> tuple[Lesion, ...]:
    out: list[Lesion] = []
    for _ in range(int(rng.integers(3, 7))):
        kind = str(rng.choice(["haemorrhage", "infarct", "tumour"]))
        r = rng.uniform(2.0, 9.0)
        angle = rng.uniform(0, 2 * np.pi)
        center = (34 * np.cos(angle) * rng.uniform(0.6, 1.1), 48 * np.sin(angle) * rng.uniform(0.5, 1.1), rng.uniform(32, 88))
        axes = (r, r * rng.uniform(0.8, 1.2), r * rng.uniform(0.8, 1.2))
        value = {"haemorrhage": rng.uniform(58, 75), "infarct": rng.uniform(14, 22), "tumour": hu["grey"] + rng.uniform(6, 25)}[
            kind
        ]
        out.append(Lesion(kind, Ellipsoid(center, axes, rng.uniform(0, 3)), value, 0.6 if kind == "haemorrhage" else 1.5))
    return tuple(out)


# --- surfaces ---------------------------------------------------------------------------------------------------------


def _vault(s: Section, inset_mm: float) -> FloatArray:
    """Distance to the skull's outer table moved inwards by some mm; wider behind than in front, as an egg."""
    a, b, up = (axis - inset_mm for axis in VAULT_MM)
    height = s.z - VAULT_Z_MM
    rest = 1 - (abs(height) / (up if height > 0 else BELOW_MM)) ** 2.4
    if rest <= 1e-3:
        return np.full_like(s.canvas.u, 1e3)
    k = float(rest ** (1 / 2.4))
    wider = 1 + 0.08 * np.clip(s.canvas.v / np.float32(b * k), -1, 1)
    return ellipse_distance(s.canvas.u / wider, s.canvas.v, 0, 0, a * k, b * k)


def _floor_mm(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Height of the skull base, and the signed distance to the ridge of the petrous bone in u and v, mm.

    Three steps down from front to back: above the orbits, around the temporal poles, around the cerebellum. The wing of the
    sphenoid bone parts the first two, the petrous ridge the last two, the saddle lies between.
    """
    w = np.abs(u)
    front = expit((-18 - 0.42 * w - v) / 2.5)
    ridge = (v + 3 - 0.52 * w) * np.float32(0.887)
    back = expit(ridge / 3)
    middle = np.maximum(1 - front - back, 0)
    over_eyes = 19 + 5 * np.exp(-(((w - 30) / 15) ** 2)) - 6 * np.exp(-((u / 7) ** 2))
    saddle = -17 + 23 * expit((15 - w) / 2) - 5 * np.exp(-((u / 8) ** 2) - ((v + 12) / 5) ** 2)
    clivus = -44 + 44 * np.exp(-((u / 17) ** 2) - (np.maximum(v - 2, 0) / 10) ** 2)
    petrous = 30 * np.exp(-((ridge / 7.5) ** 2)) * expit((w - 10) / 2)
    height = front * over_eyes + middle * saddle + back * clivus + petrous
    return height.astype(np.float32), ridge.astype(np.float32)


def _tent_mm(u: FloatArray, v: FloatArray) -> FloatArray:
    """Height of the tentorium, a tent over the cerebellum: its ridge falls to the back and its sides to the ears."""
    return (40 - 0.52 * np.abs(u) - 0.5 * np.maximum(v - 22, 0)).astype(np.float32)


def _through(s: Section, height: FloatArray, lift_mm: float = 0.0) -> FloatArray:
    """In-plane distance to the space above a surface given by its height, mm."""
    slope = np.hypot(*np.gradient(height, s.canvas.pixel_mm)).astype(np.float32)
    return (height + np.float32(lift_mm - s.z)) / np.maximum(slope, np.float32(0.35))


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw_head(s: Section, who: Head) -> None:
    """One slice of the head, from the skin inwards."""
    floor, ridge = _floor_mm(s.canvas.u, s.canvas.v)
    floor += 1.6 * s.smooth  # the gyri leave their marks
    outer = _vault(s, 0.0)
    cavity = common(_vault(s, who.wall_mm) + 0.5 * s.smooth, _through(s, floor))
    _draw_scalp(s, who, outer)
    _draw_face(s, who, outer)
    _draw_skull_base(s, who, outer, ridge, _through(s, floor, 1.0))
    _draw_vault(s, common(outer, _through(s, floor, -2.5), -cavity))
    _draw_brain(s, who, cavity, ridge)


def _draw_scalp(s: Section, who: Head, outer: FloatArray) -> None:
    c, z = s.canvas, s.z
    fat = 2.2 + 2.2 * who.person.fat
    # Below the vault's widest level the outline follows the face in front and the neck's muscles behind.
    low = float(np.clip((18 - z) / 30, 0, 1))
    neck = c.ellipse(0, 42, 62, 58) + 4 * (1 - low) if low > 0 else outer
    nose = c.ellipse(0, -92 + 0.15 * z, 13 - 0.15 * z, 13 - 0.35 * z) if z < 12 else outer
    # The skull's egg is also the face's outline, but flatter at its sides.
    front = outer + np.float32(9 * low) * np.clip(-s.canvas.v / 60 - 0.4, 0, 1) * np.clip(np.abs(c.u) / 45 - 0.2, 0, 1)
    skin = blend(front - np.float32(fat + 1.6), neck - 5, nose, radius_mm=8) + 0.35 * s.smooth
    ears = [c.ellipse(side * 78, 20 + 0.25 * z, 4.5, 15, side * 0.5) for side in (-1.0, 1.0)] if -28 < z < 26 else []
    skin = np.minimum.reduce([skin, *(ear + 1.2 * s.smooth for ear in ears)])
    c.paint(c.coverage(skin), s.tissue("skin") + 10, LABELS["soft tissue"])
    c.paint(c.coverage(skin + 1.8), s.tissue("fat"), LABELS["fat"])
    c.paint(c.coverage(skin + 1.8) * s.sheets(0.4, offset_mm=111) * np.float32(0.5), -10.0, LABELS["soft tissue"])
    c.paint(c.coverage(np.abs(outer - 1.2) - 0.6) * c.coverage(skin + 2), s.tissue("muscle") - 20, LABELS["soft tissue"])
    for side in (-1.0, 1.0):
        thick = float(np.interp(z, [-30, 0, 40, 62], [15, 11, 5, 0]))
        if thick > 0.5:
            temporal = common(c.ellipse(side * 62, -26, thick + 5, 26), skin + 3.5)
            c.paint(c.coverage(temporal + 0.8 * s.smooth), s.tissue("muscle"), LABELS["soft tissue"])
    if z < 6:
        nape = common(c.ellipse(0, 74, 52, 4 + 1.1 * (6 - z)) + 1.2 * s.smooth, skin + 5)
        c.paint(c.coverage(nape), s.tissue("muscle"), LABELS["soft tissue"])
        c.paint(c.coverage(nape) * s.sheets(1.2, offset_mm=61), s.person.hu["fat"] + 10, LABELS["fat"])


def _bubbles(s: Section, scale: float, offset_mm: float) -> FloatArray:
    """A field whose positive parts are air cells some mm wide."""
    return s.person.smooth.sample(s.canvas.u * scale, s.canvas.v * scale, s.z * scale, offset_mm=offset_mm) / np.float32(scale)


def _draw_face(s: Section, who: Head, outer: FloatArray) -> None:
    """Orbits with the eyes, nose, ethmoid cells and maxillary sinuses, in fat and muscle."""
    if s.z > 24:
        return
    c, z, hu = s.canvas, s.z, s.person.hu
    deep = common(outer + 5, c.v + 8, c.ellipse(0, -34, 60, 56))
    c.paint(c.coverage(deep) * np.clip(0.75 + 0.6 * s.smooth, 0, 1), s.tissue("muscle"), LABELS["soft tissue"])
    mimic = common(np.abs(outer + 1.5 + 1.5 * s.smooth) - 2.2, c.v + 30)
    c.paint(c.coverage(mimic) * np.clip(0.6 + 0.7 * s.smooth, 0, 1), s.tissue("muscle"), LABELS["soft tissue"])
    for side in (-1.0, 1.0):
        # The cheekbone and the rim of the orbit.
        rim = c.ellipse(side * 49, -64 + 0.1 * z, 4.5, 11 - 0.12 * z, side * 0.45)
        arch = c.ellipse(side * 66, -32, 2.2, 26, side * 0.05) if -24 < z < -12 else rim
        s.bone(np.minimum(rim, arch), 1.6, marrow_sd=60)
        jaw = c.ellipse(side * 50, -2, 6.5, 5.0, 0.2) if z < -8 else None
        if jaw is not None:
            s.bone(jaw, 1.4)
        plate = c.ellipse(side * 14, -32, 1.6, 12, side * -0.2) if z < -14 else None
        if plate is not None:
            c.paint(c.coverage(plate), hu["cortical"] * 0.8, LABELS["bone"])
    _draw_sinuses(s, who)
    for side in (-1.0, 1.0):
        _draw_orbit(s, side)


def _draw_orbit(s: Section, side: float) -> None:
    c, hu = s.canvas, s.person.hu
    orbit = Ellipsoid((side * 27, -64, 1), (17.5, 29, 17.5), side * 0.42)
    found = s.ball(orbit)
    if found is None:
        return
    room = np.zeros_like(c.u)
    w, d = found
    # In front the orbit is open: lids, not bone.
    wall = common(d - 1.8, -(c.v[w] + 78))
    c.paint(c.coverage(wall), hu["cortical"] * 0.85, LABELS["bone"], w)
    inside = common(d, -(c.v[w] + 82))
    room[w] = c.coverage(inside)
    c.paint(room[w], hu["fat"] + 6 * s.soft[w], LABELS["fat"], w)
    for name, value in (("optic nerve", hu["nerve"]), ("eye muscles", hu["muscle"])):
        tube = c.tube_distance(s.person.tubes[name])
        if tube is not None:
            c.paint(c.coverage(tube) * room, value + 4 * s.soft, LABELS["soft tissue"])
    s.fill(Ellipsoid((side * 31, -81, -1), (16, 5.5, 13)), hu["muscle"] - 8 + 5 * s.soft, "soft tissue", wobble_mm=0.8)
    s.fill(Ellipsoid((side * 31, -72, 0), (12.3, 12.3, 12.3)), hu["muscle"] + 4, "eye", wobble_mm=0.1)
    s.fill(Ellipsoid((side * 31, -72, 0), (11.2, 11.2, 11.2)), hu["vitreous"] + 2 * s.soft, "eye", wobble_mm=0.0)
    s.fill(Ellipsoid((side * 31, -80.2, 0), (4.6, 2.0, 4.6)), hu["lens"], "eye", wobble_mm=0.0)


def _draw_sinuses(s: Section, who: Head) -> None:
    c, hu = s.canvas, s.person.hu
    k = who.sinus
    cells = _bubbles(s, 2.2, 321.0)
    ethmoid = s.ball(Ellipsoid((0, -62, -4), (12 * k, 27, 20)), wobble_mm=0.4)
    if ethmoid is not None:
        w, d = ethmoid
        c.paint(c.coverage(d - 1.2), hu["cortical"] * 0.7, LABELS["bone"], w)
        c.paint(c.coverage(d), hu["mucosa"] + 5 * s.soft[w], LABELS["soft tissue"], w)
        walls = np.abs(cells[w]) - 0.25
        c.paint(c.coverage(common(d + 0.8, -walls, 0.9 - np.abs(c.u[w]))), -985.0, LABELS["sinus"], w)
        c.paint(c.coverage(common(d, walls + 0.1)) * np.float32(0.6), 420.0, LABELS["bone"], w)
        c.paint(c.coverage(common(np.abs(c.u[w] - 0.6 * s.smooth[w]) - 0.6, d)), 380.0, LABELS["bone"], w)
    air = [
        Ellipsoid((1.5, -24, -3), (11 * k, 10 * k, 9 * k)),
        *(Ellipsoid((side * 31, -62, -32), (14 * k, 17 * k, 17 * k), side * -0.3) for side in (-1.0, 1.0)),
    ]
    for hollow in air:
        found = s.ball(hollow, grow_mm=1.6)
        if found is not None:
            w, d = found
            c.paint(c.coverage(d), hu["cortical"] * 0.75, LABELS["bone"], w)
            c.paint(c.coverage(d + 1.3), hu["mucosa"], LABELS["soft tissue"], w)
            c.paint(c.coverage(d + 2.0 + 0.4 * np.maximum(s.smooth[w], 0)), -990.0, LABELS["sinus"], w)


def _draw_skull_base(s: Section, who: Head, outer: FloatArray, ridge: FloatArray, above: FloatArray) -> None:
    """Petrous bones with mastoid cells and ear canal, sphenoid and clivus: dense bone under the floor of the skull."""
    c, z, hu = s.canvas, s.z, s.person.hu
    if z > 22:
        return
    w = np.abs(c.u)
    under = -above
    petrous = common(under, np.abs(ridge - 1) - np.float32(10 + 0.08 * w), w - 66, 9 - w, np.full_like(w, -14.0 - z))
    body = common(under, w - 13, c.v - 10, -(c.v + 36))
    mastoid = common(under, c.ellipse(59, 28, 13, 17) if z > -40 else under)
    mastoid = np.minimum(mastoid, common(under, c.ellipse(-59, 28, 13, 17)))
    bone = common(blend(petrous, mastoid, radius_mm=4), outer + 0.5)
    s.bone(bone, 2.2, marrow_sd=150, marrow_hu=650)
    s.bone(body, 1.8, marrow_sd=90)
    cells = _bubbles(s, 3.0, 17.0)
    pneumatic = common(blend(mastoid, common(petrous, 40 - w), radius_mm=3) + 2.2, outer + 3.0)
    c.paint(c.coverage(common(pneumatic, 0.25 - cells - 0.5 * (who.sinus - 1))), -930.0, LABELS["sinus"])
    canal = c.tube_distance(s.person.tubes["ear canal"])
    if canal is not None:
        c.paint(c.coverage(canal), -990.0, LABELS["sinus"])
    for side in (-1.0, 1.0):
        # Cochlea and canals: fluid in the densest bone there is.
        for ear in (Ellipsoid((side * 30, 9, 0), (4, 3, 3)), Ellipsoid((side * 38, 14, 3), (2.6, 2.6, 4))):
            s.fill(Ellipsoid(ear.center_mm, (7, 6, 6)), hu["cortical"] * 1.5, "bone", room=c.coverage(bone))
            s.fill(ear, 60.0, "fluid", room=c.coverage(bone))
        s.fill(Ellipsoid((side * 18, 6, 0), (9, 2.2, 2.4), side * 0.25), 20.0, "fluid")
    k = who.sinus
    sphenoid = s.ball(Ellipsoid((1.5, -22, -3), (11 * k, 11 * k, 9 * k)))
    if sphenoid is not None:
        win, d = sphenoid
        septum = np.abs(c.u[win] - 2 - 0.08 * c.v[win]) - 0.5
        c.paint(c.coverage(common(d + 1.0, -septum, body[win] + 1)), -990.0, LABELS["sinus"], win)


def _draw_vault(s: Section, bone: FloatArray) -> None:
    """Two tables with diploe between; the sutures are gaps with jagged edges."""
    c, z = s.canvas, s.z
    s.bone(bone, 1.9, marrow_sd=130, marrow_hu=s.person.hu["diploe"])
    wave = 2.2 * _bubbles(s, 2.6, 45.0)
    coronal = (c.v + 22 - 0.35 * (z - 60)) * np.float32(0.94) + wave
    lambdoid = c.v - 58 - 0.5 * (70 - z) * 0.4 + 0.12 * np.abs(c.u) + wave
    sagittal = np.where(c.v > -22, c.u + wave, 9.0)
    gap = np.minimum.reduce([np.abs(coronal), np.abs(lambdoid), np.abs(sagittal)]).astype(np.float32) - 0.35
    if z > 24:
        c.paint(c.coverage(gap) * c.coverage(bone + 0.4) * np.float32(0.7), 150.0, LABELS["bone"])


def _draw_brain(s: Section, who: Head, cavity: FloatArray, ridge: FloatArray) -> None:
    c, hu = s.canvas, s.person.hu
    inside = c.coverage(cavity)
    if not inside.any():
        return
    c.paint(inside, hu["csf"] + 1.5 * s.soft, LABELS["cerebrospinal fluid"])
    behind = _behind(s, ridge)
    stem = c.tube_distance(s.person.tubes["stem"])
    stem = np.full_like(cavity, 1e3) if stem is None else stem
    _draw_cerebrum(s, who, common(cavity, -behind), stem)
    _draw_cerebellum(s, who, common(cavity, behind))
    c.paint(c.coverage(common(stem + 0.4 * s.smooth, cavity + 1)), hu["white"] + 4 + 2 * s.soft, LABELS["white matter"])
    _draw_fluid_spaces(s, who, cavity, stem)
    for lesion in s.person.lesions:
        if lesion.site == "infarct":
            s.lesion(lesion, c.coverage(cavity + 2))
        else:
            swollen = Ellipsoid(lesion.ball.center_mm, tuple(1.25 * a + 2 for a in lesion.ball.semi_axes_mm), lesion.ball.angle_rad)  # type: ignore[arg-type]
            s.fill(swollen, 20 + 2 * s.soft, "white matter", room=c.coverage(cavity + 3) * np.float32(0.7), wobble_mm=1.2)
            s.lesion(lesion, c.coverage(cavity + 1))
    _draw_membranes_and_vessels(s, cavity, behind)


def _behind(s: Section, ridge: FloatArray) -> FloatArray:
    """Distance to the space below the tentorium, mm."""
    tent = _tent_mm(s.canvas.u, s.canvas.v) + 0.6 * s.smooth
    return common(-_through(s, tent), -ridge - 2, 6 - s.canvas.v)


def _draw_cerebrum(s: Section, who: Head, room: FloatArray, stem: FloatArray) -> None:
    """White matter inside a grey ribbon that follows surface and sulci."""
    c, z, hu = s.canvas, s.z, s.person.hu
    gap = np.float32(0.9 + 2.2 * who.atrophy)
    pia = room + gap
    field = _bubbles(s, 1.3, 233.0)
    steep = np.hypot(*np.gradient(field, c.pixel_mm)).astype(np.float32)
    fold = np.abs(field) / np.maximum(steep, np.float32(0.08))
    # Away from the surface the folds close and end; their depth is 10 to 20 mm.
    # High up the slice runs along the surface, and the folds fill it.
    reach = -pia - np.float32(17 + 0.35 * max(z - 60, 0)) - 4 * s.smooth
    # Wide at the surface, closing with depth: 2 mm across in the young, twice that in the old.
    half = np.maximum(0.9 + 1.2 * who.atrophy + 0.07 * pia, 0.15)
    sulcus = common(fold - half, reach)
    mid = np.abs(c.u + 0.5 * s.smooth)
    callosum = c.ellipsoid(Ellipsoid((0, 0, 50), (60, 36, 13)))
    fissure = common(mid - np.float32(0.7 + 0.7 * who.atrophy), -callosum)
    sylvian = c.tube_distance(s.person.tubes["sylvian"])
    sylvian = np.full_like(room, 1e3) if sylvian is None else sylvian - np.float32(0.8 * who.atrophy)
    clefts = np.minimum.reduce([sulcus, fissure, sylvian])
    brain = common(pia, -clefts, -(stem - 1.2) if 8 < z < 34 else pia)
    grey_fraction = 1.5 * s.soft
    c.paint(c.coverage(brain), hu["grey"] + grey_fraction, LABELS["grey matter"])
    fold_depth = np.maximum(-fold, -40)
    ribbon = 3.4 + 0.5 * s.smooth
    white = common(pia + ribbon, np.where(reach < 3, fold_depth + ribbon, -9), mid * -1 + ribbon, ribbon - sylvian)
    white = np.where(callosum < 0, common(pia + ribbon, ribbon - sylvian), white)
    # Partial mixture of the two over 1.5 mm, as cortex and white matter interdigitate.
    c.paint(np.clip(0.5 - white / np.float32(c.pixel_mm + 1.2), 0, 1), hu["white"] + grey_fraction, LABELS["white matter"])
    for side in (-1.0, 1.0):
        for nucleus in (
            Ellipsoid((side * 13, -20, 44), (5, 10, 10), side * 0.3),
            Ellipsoid((side * 25, -4, 36), (6.5, 15, 10), side * 0.25),
            Ellipsoid((side * 10, 14, 40), (8.5, 14, 9), side * 0.45),
        ):
            s.fill(nucleus, hu["basal"] + grey_fraction, "grey matter", room=c.coverage(brain), wobble_mm=0.8)
        insula = Ellipsoid((side * 36, 0, 34), (2.2, 18, 13), side * 0.1)
        s.fill(insula, hu["grey"] + grey_fraction, "grey matter", room=c.coverage(brain))


def _draw_cerebellum(s: Section, who: Head, room: FloatArray) -> None:
    c, hu = s.canvas, s.person.hu
    lobes = [Ellipsoid((side * 26, 44, -6), (34, 36, 33), side * 0.2) for side in (-1.0, 1.0)]
    shape = blend(*(c.ellipsoid(lobe) for lobe in lobes), c.ellipsoid(Ellipsoid((0, 46, 6), (10, 26, 26))), radius_mm=6)
    d = common(shape + 0.8 * s.smooth, room + np.float32(1.5 + 1.5 * who.atrophy))
    if d.min() > 0:
        return
    c.paint(c.coverage(d), hu["cerebellum"] + 1.5 * s.soft, LABELS["grey matter"])
    core = d + 9 + 2 * s.smooth
    c.paint(np.clip(0.5 - core / 4, 0, 1) * np.float32(0.8), hu["white"] + 1.5 * s.soft, LABELS["white matter"])
    # Folia: fine parallel clefts that run along the surface.
    leaves = np.abs(np.sin(d * np.float32(1.05) + 0.7 * s.smooth)) * np.float32(0.95)
    c.paint(c.coverage(common(d + 1, leaves - 0.12)) * np.float32(0.35 + 0.3 * who.atrophy), hu["csf"], LABELS["grey matter"])


def _draw_fluid_spaces(s: Section, who: Head, cavity: FloatArray, stem: FloatArray) -> None:
    """Ventricles with plexus, and the cisterns around the brain stem."""
    c, hu = s.canvas, s.person.hu
    fluid = hu["csf"] + 1.5 * s.soft
    wide = 0.7 + 0.9 * who.atrophy
    ventricles = c.tube_distance(s.person.tubes["ventricles"])
    if ventricles is not None:
        c.paint(c.coverage(common(ventricles + 0.5 * s.smooth, 0.9 - np.abs(c.u))), fluid, LABELS["cerebrospinal fluid"])
        plexus = c.tube_distance(s.person.tubes["plexus"])
        if plexus is not None:
            cover = c.coverage(common(plexus + 0.6 * s.smooth, ventricles + 0.5))
            c.paint(cover, hu["grey"] + 12, LABELS["grey matter"])
            c.paint(c.coverage(plexus + 1.8) * np.clip(s.smooth, 0, 1), hu["calcification"] * 1.5, LABELS["soft tissue"])
    s.fill(Ellipsoid((0, 4, 34), (1.4 * wide + 0.8, 15, 12)), fluid, "cerebrospinal fluid", wobble_mm=0.3)
    s.fill(Ellipsoid((0, 31, -8), (5 + 2.5 * wide, 3.5 + wide, 13)), fluid, "cerebrospinal fluid")
    s.fill(Ellipsoid((0, 29, 40), (2.2, 2.6, 2.6)), hu["calcification"], "soft tissue")
    pool = c.coverage(cavity + 0.5)
    for cistern in (
        Ellipsoid((0, -13, 17), (13, 9, 6.5)),
        Ellipsoid((0, 34, 30), (11, 4.5, 6)),
        Ellipsoid((0, 36, 40), (7, 3, 6)),
        Ellipsoid((0, 66, -24), (9, 9, 14)),
    ):
        s.fill(cistern, fluid, "cerebrospinal fluid", room=pool * c.coverage(-stem), wobble_mm=1.0)


def _draw_membranes_and_vessels(s: Section, cavity: FloatArray, behind: FloatArray) -> None:
    c, z, hu = s.canvas, s.z, s.person.hu
    inside = c.coverage(cavity + 0.3)
    thin = min(1.0, 1.3 / (c.pixel_mm + 0.6))
    if z > 26:
        falx = common(np.abs(c.u + 0.5 * s.smooth) - 0.45, -c.ellipsoid(Ellipsoid((0, 0, 44), (40, 46, 24))))
        c.paint(c.coverage(falx) * inside * np.float32(thin), hu["dura"], LABELS["soft tissue"])
    if z < 42:
        tent = common(np.abs(behind) - 0.5, 8 - c.v, -(c.ellipse(0, 16, 19, 26)))
        c.paint(c.coverage(tent) * inside * np.float32(thin), hu["dura"], LABELS["soft tissue"])
    sinuses = c.tube_distance(s.person.tubes["sinuses"])
    if sinuses is not None:
        cover = c.coverage(common(sinuses, cavity - 0.6))
        c.paint(cover, hu["vein"] + 6 + 3 * s.soft, LABELS["vessel"])
    c.paint(c.thin_tube_coverage(s.person.tubes["arteries"]) * inside, hu["aorta"], LABELS["vessel"])
