"""The pelvis: hip bones, sacrum and femora, muscles of hip and buttock, bladder, gut, womb or prostate, vessels and lesions.

Coordinates in mm of the pelvis's own: u to the image's right (the patient's left), v to the back, z up from the centres of the
hip joints; the sacral promontory is at z = 92, the top of the iliac crests at z = 122. Sizes are those of textbooks of anatomy
(femoral head 44–50 mm, distance of the hip joints about 175 mm); single numbers were set by eye beside real slices, no atlas
was copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from finegrain.simulate.phantom.drawing import FAR_MM, Ellipsoid, Frame, blend, common, superellipse_distance
from finegrain.simulate.phantom.person import Lesion, Person, Vector, person
from finegrain.simulate.phantom.section import LABELS, Section, hollow
from finegrain.simulate.phantom.texture import FloatArray, Waves
from finegrain.simulate.phantom.trees import Points, Tubes, join, murray_tree, polyline

Z_RANGE_MM = (-55.0, 135.0)
"""Lowest and highest z that the pelvis covers: ischial tuberosities to above the iliac crests."""

PROMONTORY_MM = 92.0

HU_BY_PHASE: dict[str, dict[str, float]] = {
    "native": {"urine": 4, "womb": 45, "prostate": 38, "node": 38},
    "arterial": {"urine": 5, "womb": 85, "prostate": 60, "node": 60},
    "portal": {"urine": 8, "womb": 110, "prostate": 75, "node": 85},
}
"""Mean HU at 120 kV; textbook values: urine 0–15 before iodine arrives, muscular organs as muscle, enhancing with blood."""

SIDES = (-1.0, 1.0)


@dataclass(frozen=True)
class Pelvis:
    """What is drawn by chance about one pelvis, once."""

    person: Person
    """The same person as in the other regions, in the pelvis's frame, with its organs, tubes and lesions."""
    female: bool
    loops: tuple[tuple[Tubes, float], ...]
    """Loops of small bowel and the HU of their content."""
    bulk: float
    """Size of the muscles, 1 for the average."""


@lru_cache(maxsize=4)
def pelvis(seed: int) -> Pelvis:
    """The pelvis of the person of a seed."""
    who = person(seed)
    rng = np.random.default_rng([20_242, seed])
    female = bool(rng.random() < 0.5)
    warp = Waves.draw(rng, rms=2.2), Waves.draw(rng, rms=2.2)
    frame = Frame(
        stretch_x=rng.uniform(0.95, 1.05), stretch_y=rng.uniform(0.92, 1.08), shift_mm=(rng.uniform(-3, 3), rng.uniform(-6, 6)),
        warp_x=warp[0], warp_y=warp[1],
    )  # fmt: skip
    hu = who.hu | {name: value + rng.normal(0, 2) for name, value in HU_BY_PHASE[who.phase].items()}
    # The trabeculae of the hip are sparser than those of the spine and hold fatty marrow.
    hu["trabecular"] = 0.75 * who.hu["trabecular"]
    organs = _organs(rng, female=female)
    mine = replace(who, frame=frame, hu=hu, organs=organs, tubes=_tubes(rng), lesions=_lesions(rng, hu))
    return Pelvis(person=mine, female=female, loops=_loops(rng), bulk=rng.uniform(0.85, 1.12))


def _organs(rng: np.random.Generator, *, female: bool) -> dict[str, Ellipsoid]:
    full = rng.uniform(0.6, 1.15)
    organs: dict[str, tuple[Vector, Vector, float]] = {"bladder": ((0, -26, 6), (38 * full, 26 * full**0.5, 24 * full), 0.0)}
    if female:
        lean = rng.normal(0, 9)
        organs |= {
            "womb": ((lean, 6, 30), (26, 21, 26), rng.normal(0, 0.3)),
            "cervix": ((0.4 * lean, 14, 6), (15, 12, 14), 0.0),
            "ovary right": ((-40, 4, 42), (14, 9, 12), 0.4),
            "ovary left": ((42, 6, 40), (13, 10, 12), -0.4),
        }
    else:
        big = rng.uniform(0.85, 1.35)
        organs |= {
            "prostate": ((0, -14, -24), (22 * big, 16 * big, 17 * big), 0.0),
            "vesicle right": ((-17, 9, 0), (17, 5.5, 7), 0.35),
            "vesicle left": ((17, 9, 0), (17, 5.5, 7), -0.35),
        }
    out = {}
    for name, (center, axes, angle) in organs.items():
        c = np.array(center) + rng.normal(0, 2.0, 3)
        a = np.array(axes) * np.clip(1 + rng.normal(0, 0.07, 3), 0.85, 1.15)
        out[name] = Ellipsoid((c[0], c[1], c[2]), (a[0], a[1], a[2]), angle)
    return out


def _both(points: list[tuple[float, float, float]], radius_mm: float | list[float]) -> Tubes:
    return join(*(polyline([(side * u, v, z) for u, v, z in points], radius_mm) for side in SIDES))


def _tubes(rng: np.random.Generator) -> dict[str, Tubes]:
    thick = float(np.clip(rng.normal(1, 0.1), 0.8, 1.25))
    arteries = join(
        polyline([(5, 8, 160), (4, 8, 126)], 8.0 * thick),
        _both([(4, 8, 126), (22, 6, 108), (36, 10, 92), (50, 0, 62), (60, -30, 24), (60, -54, -4), (64, -60, -70)],
              [7 * thick, 6.5 * thick, 5.5, 4.8, 4.8, 4.8, 4.5]),
        _both([(36, 10, 92), (44, 30, 66), (46, 40, 38), (48, 34, 10)], [4.4, 4.0, 3.2, 2.0]),
    )  # fmt: skip
    veins = join(
        polyline([(-18, 16, 160), (-16, 18, 112)], 10.5 * thick),
        _both(
            [(12, 20, 112), (30, 22, 98), (46, 10, 62), (52, -22, 24), (51, -50, -4), (55, -56, -70)], [8, 7, 6.5, 6.5, 6.5, 6.0]
        ),
        _both([(32, 22, 94), (42, 38, 62), (43, 46, 36), (44, 38, 8)], [5.5, 4.6, 3.6, 2.2]),
    )
    psoas = _both(
        [(36, 26, 150), (42, 20, 115), (54, 6, 80), (66, -16, 45), (72, -36, 12), (76, -38, -12), (88, -14, -50)],
        list(np.array([19, 21, 21, 19, 17, 16, 12]) * rng.uniform(0.9, 1.1)),
    )
    bowel = {
        "rectum": polyline(
            [(44, -12, 62), (16, 14, 64), (2, 44, 52), (3, 54, 30), (-2, 50, 6), (0, 42, -24), (0, 52, -70)],
            [12, 14, 15, 18 * rng.uniform(0.8, 1.2), 19 * rng.uniform(0.8, 1.2), 15, 12],
        ),
        "sigmoid": polyline([(86, 10, 150), (88, 0, 112), (80, -16, 84), (60, -26, 66), (44, -12, 62)],
                            list(rng.uniform(9, 16, 5))),
        "caecum": polyline([(-84, -2, 150), (-82, -8, 112), (-76, -16, 84), (-66, -18, 66)], [*rng.uniform(17, 26, 3), 12.0]),
    }  # fmt: skip

    def inside(p: Points) -> NDArray[np.bool_]:
        u, v, z = p.T
        a, front, back = _cavity_axes(z)
        return (np.abs(u) < 0.8 * a) & (v > front + 12) & (v < back - 8)

    n = 44
    root = np.column_stack([rng.normal(0, 34, n), rng.uniform(-20, 46, n), rng.uniform(-20, 140, n)])
    aim = rng.standard_normal((n, 3)) * np.array([1.0, 0.8, 0.5])
    aim /= np.linalg.norm(aim, axis=1, keepdims=True)
    twigs = murray_tree(
        rng, roots_mm=root, directions=aim, radii_mm=rng.uniform(1.0, 2.1, n), inside=inside, stop_radius_mm=0.5,
        length_in_radii=(7, 14),
    )  # fmt: skip
    bones = {
        "femur": join(
            _both([(88, 0, 0), (103, 4, -11), (120, 10, -30)], [17, 15, 17]),
            _both([(120, 10, -30), (122, 8, -52), (119, 4, -110)], 16.0),
        ),
        "pubis": _both([(70, -16, 4), (50, -36, -6), (26, -50, -16), (9, -54, -24)], [10, 7.5, 7, 9]),
        "ischium": _both([(76, 22, 6), (68, 30, -18), (60, 32, -46), (54, 26, -70)], [12, 11, 14, 12]),
        "lower ramus": _both([(52, 16, -62), (30, -16, -52), (11, -44, -36)], [7.5, 5.5, 6.5]),
    }
    return {"arteries": arteries, "veins": veins, "psoas": psoas, "twigs": twigs, **bowel, **bones}


def _loops(rng: np.random.Generator) -> tuple[tuple[Tubes, float], ...]:
    loops = []
    for _ in range(17):
        p = np.array([rng.uniform(-58, 58), rng.uniform(-62, 0), rng.uniform(48, 145)])
        heading = rng.standard_normal(3)
        path = [p]
        for _ in range(6):
            heading = heading / np.linalg.norm(heading) + rng.normal(0, 0.55, 3)
            step = p + 13 * heading / np.linalg.norm(heading)
            if abs(step[0]) > 68 or not -66 < step[1] < 6 or step[2] < 44:
                heading = np.array([0.0, -30.0, 100.0]) - p
                step = p + 13 * heading / np.linalg.norm(heading)
            p = step
            path.append(p)
        radius = rng.uniform(7, 12) * rng.uniform(0.82, 1.15, len(path))
        loops.append((polyline(np.array(path), list(radius)), float(rng.choice([rng.uniform(5, 35), rng.uniform(45, 75)]))))
    return tuple(loops)


def _lesions(rng: np.random.Generator, hu: dict[str, float]) -> tuple[Lesion, ...]:
    out: list[Lesion] = []
    for _ in range(int(rng.integers(3, 8))):
        r = rng.uniform(3, 9)
        place = rng.integers(3)
        # Beside the outer and inner iliac vessels and in the groin.
        at = [(46, -6, 58), (52, 34, 40), (72, -66, -14)][place]
        center = (float(rng.choice(SIDES)) * (at[0] + rng.normal(0, 5)), at[1] + rng.normal(0, 4), at[2] + rng.normal(0, 12))
        ball = Ellipsoid(center, (r, r * rng.uniform(0.6, 1.0), r * rng.uniform(0.9, 1.4)), rng.uniform(0, 3))
        out.append(Lesion("node", ball, hu["node"] + rng.normal(0, 8), 0.7))
    for _ in range(int(rng.integers(1, 5))):
        r = rng.uniform(1.5, 4.5)
        at = [(66, 12, 18), (88, 2, 4), (22, 56, 74), (72, 24, -6)][rng.integers(4)]
        center = (float(rng.choice(SIDES)) * (at[0] + rng.normal(0, 3)), at[1] + rng.normal(0, 3), at[2] + rng.normal(0, 5))
        out.append(Lesion("bone", Ellipsoid(center, (r, r, r * 1.2)), rng.choice([700.0, 850.0, 40.0]), 0.8))
    return tuple(out)


# --- surfaces ---------------------------------------------------------------------------------------------------------


def _cavity_axes(z: NDArray[np.floating] | float) -> tuple[NDArray, NDArray, NDArray]:
    """Half width of the room for the organs, its front and its back, mm."""
    knots = [-60.0, -35, -10, 20, 50, 80, 110, 140]
    half_width = np.asarray(np.interp(z, knots, [26.0, 34, 50, 56, 70, 92, 104, 106]))
    front = np.asarray(np.interp(z, knots, [-24.0, -36, -50, -68, -74, -76, -76, -76]))
    back = np.asarray(np.interp(z, knots, [44.0, 56, 60, 66, 58, 40, 34, 34]))
    return half_width, front, back


def _outline(s: Section) -> FloatArray:
    """Distance to the outer face of the muscles, mm."""
    z = s.z
    knots = [-60.0, -25, 10, 50, 90, 140]
    a = float(np.interp(z, knots, [144, 149, 146, 139, 133, 124]))
    b = float(np.interp(z, knots, [88, 88, 88, 88, 87, 84]))
    return superellipse_distance(s.canvas.u, s.canvas.v - 2, a, b, 2.3)


def _wing(s: Section, side: float) -> FloatArray | None:
    """Distance to the iliac wing: an S-shaped plate between front spine and sacroiliac joint, thin in its middle."""
    z = s.z
    if not 18 < z < 123:
        return None
    knots = [18.0, 35, 60, 85, 105, 123]

    def at(values: list[float]) -> float:
        return float(np.interp(z, knots, values))

    front = (side * at([86, 97, 113, 124, 124, 112]), at([-26, -38, -46, -44, -22, 14]))
    middle = (side * at([84, 92, 104, 114, 117, 110]), at([-6, -12, -14, -8, 4, 22]))
    behind = (side * at([80, 80, 80, 86, 96, 104]), at([14, 22, 30, 34, 36, 34]))
    rear = (side * at([74, 66, 54, 50, 60, 96]), at([26, 44, 60, 68, 62, 40]))
    tip = (side * at([70, 58, 44, 40, 54, 92]), at([32, 56, 76, 84, 72, 44]))
    return s.plate([front, middle, behind, rear, tip], [5.5, 3.4, 3.8, 7.0, 5.0])


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw_pelvis(s: Section, who: Pelvis) -> None:
    """One slice of the pelvis, from the skin inwards and from soft to hard."""
    outline = _draw_wall(s, who)
    hips = {side: _hip_distance(s, side) for side in SIDES}
    _draw_gluteal_planes(s, hips)
    room = _draw_cavity(s)
    _draw_muscles_inside(s, hips)
    _draw_groin(s)
    _draw_gut(s, who, room)
    _draw_organs(s, who, room)
    _draw_vessels(s)
    _draw_bones(s, hips, outline)


def _draw_wall(s: Section, who: Pelvis) -> FloatArray:
    c, z = s.canvas, s.z
    outline = _outline(s) - np.float32(10 * (who.bulk - 1))
    angle_front = np.clip(-c.v / 90, 0, 1)
    angle_back = np.clip(c.v / 90, 0, 1)
    wave = s.person.outline.on_grid(c.axis_mm, c.axis_mm, z)
    low = float(np.clip((40 - z) / 60, 0, 1))
    fat = s.person.fat * (13 + 7 * angle_front + (6 + 12 * low) * angle_back) * (1 + 0.07 * wave) + 2
    fat = np.minimum(fat, 36).astype(np.float32)
    skin = outline - fat
    if z < 42:
        depth = float(np.interp(z, [-60, 0, 42], [46, 30, 1]))
        cleft = np.where(c.v > 0, np.abs(c.u) - 0.16 * (skin + depth), 9)
        skin = common(skin, -cleft)
    c.paint(c.coverage(skin), s.person.hu["skin"] + 10 * s.soft, LABELS["soft tissue"])
    within = c.coverage(skin + 1.8)
    c.paint(within, s.tissue("fat"), LABELS["fat"])
    c.paint(within * s.sheets(0.35, offset_mm=311) * np.float32(0.6), -30.0, LABELS["soft tissue"])
    muscle = common(outline + 1.8 * s.smooth, skin + 5)
    c.paint(c.coverage(muscle), s.tissue("muscle"), LABELS["soft tissue"])
    c.paint(c.coverage(muscle + 2) * s.sheets(0.9, offset_mm=211) * np.float32(0.6), s.person.hu["fat"] + 15, LABELS["fat"])
    flecks = np.clip(1.2 * s.person.soft.sample(c.u, c.v, z, offset_mm=53) - 2.4, 0, 0.6)
    c.paint(c.coverage(muscle + 3) * flecks, -60.0, LABELS["fat"])
    if z > 30:
        # Loin behind, between crest and spine: the multifidus beside the midline.
        spine = common(np.abs(c.u) - 3, 62 - c.v)
        c.paint(c.coverage(spine) * c.coverage(muscle + 4), s.tissue("fat"), LABELS["fat"])
    return outline


def _draw_gluteal_planes(s: Section, hips: dict[float, FloatArray]) -> None:
    """Fat between the muscles of the buttock, which lie in layers around the hip bone."""
    c = s.canvas
    gap = np.clip(0.5 + 0.9 * s.person.smooth.sample(c.u, c.v, s.z, offset_mm=97), 0, 1.8)
    for side, hip in hips.items():
        far = common(-side * c.u + 26, -c.v - 40)
        for layer, thick in ((15.0, 1.1), (31.0, 1.9)):
            plane = np.abs(hip - np.float32(layer) + 2.5 * s.smooth) - thick * gap
            c.paint(c.coverage(common(plane, far, hip - 60)) * np.float32(0.9), s.tissue("fat"), LABELS["fat"])


def _cavity(s: Section) -> FloatArray:
    half, front, back = (float(x) for x in _cavity_axes(s.z))
    c = s.canvas
    return superellipse_distance(c.u, c.v - np.float32((front + back) / 2), half, (back - front) / 2, 2.6) + 1.5 * s.smooth


def _draw_cavity(s: Section) -> FloatArray:
    """Fat of the pelvis with strands and small vessels; gives the distance to its wall."""
    c = s.canvas
    room = _cavity(s)
    cover = c.coverage(room)
    c.paint(cover, s.tissue("fat") + 5, LABELS["fat"])
    c.paint(cover * s.sheets(0.5, offset_mm=511) * np.float32(0.7), -20.0, LABELS["soft tissue"])
    c.paint(c.thin_tube_coverage(s.person.tubes["twigs"]) * cover, s.person.hu["vein"] * 0.85, LABELS["vessel"])
    if s.z < 10:
        for side in SIDES:
            fossa = Ellipsoid((side * 27, 40, -42), (17, 26, 40), side * -0.5)
            s.fill(fossa, s.tissue("fat"), "fat", wobble_mm=2.0)
    # Levator: the sling between rectum and wall.
    if s.z < 0:
        sling = np.abs(c.ellipse(0, 24, 24, 34) + s.smooth) - 1.6
        c.paint(c.coverage(common(sling, -c.v - 4)), s.tissue("muscle"), LABELS["soft tissue"])
    return room


def _draw_muscles_inside(s: Section, hips: dict[float, FloatArray]) -> None:
    """Iliopsoas, obturator internus and piriformis."""
    c, z = s.canvas, s.z
    muscle = s.tissue("muscle")
    psoas = c.tube_distance(s.person.tubes["psoas"])
    if psoas is not None:
        c.paint(c.coverage(psoas - 1.6 + 1.2 * s.smooth), s.tissue("fat"), LABELS["fat"])
        c.paint(c.coverage(psoas + 1.2 * s.smooth), muscle, LABELS["soft tissue"])
    for side, hip in hips.items():
        thick = float(np.interp(z, [-50, 0, 30, 70, 118, 123], [10, 9, 7, 12, 7, 2]))
        inner = common(
            hip - np.float32(thick) + 1.5 * s.smooth, side * c.u - np.float32(np.interp(z, [0, 60, 100], [82, 108, 122])), c.v - 44
        )
        c.paint(c.coverage(common(inner, -side * c.u + 30)), muscle, LABELS["soft tissue"])
        if 5 < z < 55:
            piriformis = c.ellipse(side * 48, 62, 26, 7, side * 0.35)
            c.paint(c.coverage(piriformis + 1.2 * s.smooth), muscle, LABELS["soft tissue"])


def _draw_groin(s: Section) -> None:
    """Fat around the femoral vessels and the muscles in front of the hip."""
    c, z = s.canvas, s.z
    if z > 16:
        return
    grow = float(np.clip((16 - z) / 20, 0.2, 1))
    mons = c.ellipse(0, -84, 40, 22 * grow)
    c.paint(c.coverage(mons + 2.0 * s.smooth), s.tissue("fat"), LABELS["fat"])
    for side in SIDES:
        pad = c.ellipse(side * 62, -68, 30 * grow, 22 * grow, side * 0.25)
        c.paint(c.coverage(pad + 2.0 * s.smooth), s.tissue("fat"), LABELS["fat"])
        for u0, v0, a, b in ((86, -64, 9, 6), (96, -50, 13, 10), (118, -42, 8, 13), (44, -52, 15, 7)):
            muscle = c.ellipse(side * u0, v0, a * grow, b * grow, side * 0.5)
            c.paint(c.coverage(muscle - 1.5), s.tissue("fat"), LABELS["fat"])
            c.paint(c.coverage(muscle + 0.9 * s.smooth), s.tissue("muscle"), LABELS["soft tissue"])


def _draw_gut(s: Section, who: Pelvis, room: FloatArray) -> None:
    c = s.canvas
    folds = 1.1 * s.person.smooth.sample(c.u * 2, c.v * 2, 2 * s.z, offset_mm=15.0)
    for i, (loop, content) in enumerate(who.loops):
        d = c.tube_distance(loop)
        if d is not None:
            d = common(d + folds, room + 2)
            cover = c.coverage(d)
            if cover.any():
                top = float(c.axis_mm[np.nonzero(cover.any(axis=1))[0][0]])
                hollow(s, d, wall_mm=2.2, content=content, gas_below_v=top + (4.0 if i % 5 == 0 else -9.0))
    mottle = s.person.soft.sample(c.u, c.v, s.z, offset_mm=871)
    stool = (30 + 15 * mottle - 500 * np.clip(2.5 * (mottle - 0.75), 0, 1)).astype(np.float32)
    wave = 2.0 * s.person.smooth.sample(c.u, c.v, s.z, offset_mm=633)
    for name, gas_below in (("caecum", -40.0), ("sigmoid", -44.0), ("rectum", 38.0)):
        d = c.tube_distance(s.person.tubes[name])
        if d is not None:
            wall = room + 2 if name != "rectum" else d
            hollow(s, common(d + 0.6 * wave, wall), wall_mm=3.0, content=stool, gas_below_v=gas_below)


def _draw_organs(s: Section, who: Pelvis, room: FloatArray) -> None:
    c, hu, organs = s.canvas, s.person.hu, s.person.organs
    if who.female:
        for name in ("womb", "cervix"):
            s.fill(organs[name], hu["womb"] + 7 * s.soft + 4 * s.smooth, "soft tissue", wobble_mm=1.2)
        u0, v0, z0 = organs["womb"].center_mm
        s.fill(Ellipsoid((u0, v0, z0), (9, 3.0, 12), organs["womb"].angle_rad), hu["womb"] * 0.5 + 10, "soft tissue")
        for name in ("ovary right", "ovary left"):
            s.fill(organs[name], hu["womb"] * 0.5 + 20 + 6 * s.soft, "soft tissue", wobble_mm=1.0)
            cyst = organs[name].center_mm
            s.fill(Ellipsoid((cyst[0] + 3, cyst[1], cyst[2] + 2), (5, 4.5, 5)), 10 + 2 * s.soft, "fluid")
    else:
        for name in ("vesicle right", "vesicle left"):
            s.fill(organs[name], 28 + 6 * s.soft, "soft tissue", wobble_mm=1.2)
        s.fill(organs["prostate"], hu["prostate"] + 5 * s.soft + 5 * s.smooth, "soft tissue", wobble_mm=0.8)
    d = common(c.ellipsoid(organs["bladder"]) + 1.2 * s.smooth, room - 4)
    c.paint(c.coverage(d), s.tissue("bowel wall"), LABELS["soft tissue"])
    c.paint(c.coverage(d + 2.8), hu["urine"] + 2 * s.soft, LABELS["bladder"])


def _draw_vessels(s: Section) -> None:
    c = s.canvas
    for name, blood in (("veins", "vein"), ("arteries", "aorta")):
        d = c.tube_distance(s.person.tubes[name])
        if d is not None:
            d = d + 0.4 * s.smooth
            c.paint(c.coverage(d - 1.0), s.tissue("muscle") - 5, LABELS["soft tissue"])
            c.paint(c.coverage(d), s.person.hu[blood] + 4 * s.soft, LABELS["vessel"])
    for lesion in s.person.lesions:
        if lesion.site == "node":
            s.lesion(lesion, np.ones_like(c.u))


def _hip_distance(s: Section, side: float) -> FloatArray:
    """Distance to one hip bone: wing, socket with its columns, pubis and ischium."""
    c, z = s.canvas, s.z
    parts = [np.full_like(c.u, FAR_MM)]
    wing = _wing(s, side)
    if wing is not None:
        parts.append(wing)
    for body in (
        Ellipsoid((side * 76, 2, 26), (17, 27, 22), side * 0.15),
        Ellipsoid((side * 64, 4, 2), (7, 30, 30), side * -0.1),
        Ellipsoid((side * 74, -20, 2), (14, 10, 26), side * 0.5),
        Ellipsoid((side * 80, 26, -4), (15, 11, 30), side * -0.5),
    ):
        if abs(z - body.center_mm[2]) < body.semi_axes_mm[2]:
            parts.append(c.ellipsoid(body))
    for name in ("pubis", "ischium", "lower ramus"):
        tube = c.tube_distance(s.person.tubes[name])
        if tube is not None:
            parts.append(np.where(side * c.u > 0, tube, FAR_MM))
    hip = blend(*parts, radius_mm=5) if len(parts) > 1 else parts[0]
    socket = c.ellipsoid(Ellipsoid((side * 89, 0, 0), (27.5, 27.5, 27.5)))
    symphysis = np.float32(2.4) - side * c.u
    return common(hip + 0.6 * s.smooth, -socket, symphysis)


def _sacrum(s: Section) -> tuple[FloatArray, FloatArray] | None:
    """Distance to sacrum or last lumbar vertebra, and to the holes in it: canal and foramina."""
    c, z = s.canvas, s.z
    if z < -34:
        return None
    canal_v = float(np.interp(z, [0, 30, 60, 92, 140], [78, 84, 78, 64, 60]))
    canal = c.ellipse(0, canal_v, float(np.interp(z, [0, 60, 100], [3, 11, 11])), float(np.interp(z, [0, 60, 100], [1.5, 5, 7])))
    if z > PROMONTORY_MM:
        body = c.ellipse(0, 36 - 0.1 * (z - 92), 26, 17.5)
        arch = [c.ellipse(0, canal_v + 1, 18, 14), c.ellipse(0, canal_v + 22, 4, 14)]
        for side in SIDES:
            arch.append(c.ellipse(side * 34, 52, 16, 5.0, side * 0.2))
            arch.append(c.ellipse(side * 19, canal_v + 4, 6, 8, side * 0.3))
        place = (z - PROMONTORY_MM) % 36
        if place > 28:  # the disc above the last vertebra: here only the joints behind are bone
            return blend(*arch[2:], radius_mm=3), canal
        return blend(body, *arch, radius_mm=3), canal
    # The sacrum leans back as it goes down, and ends as the coccyx in front again.
    v0 = float(np.interp(z, [-34, -15, 10, 35, 60, 92], [56, 64, 74, 76, 66, 40]))
    half = float(np.interp(z, [-34, -15, 5, 35, 60, 92], [4, 8, 22, 38, 50, 50]))
    deep = float(np.interp(z, [-34, 0, 35, 60, 92], [4, 6, 9, 12, 17]))
    body = c.ellipse(0, v0, min(half, 27), deep)
    parts = [body]
    for side in SIDES:
        parts.append(c.ellipse(side * 0.6 * half, v0 + 6, 0.42 * half, deep * 0.9, side * 0.25))
    if z > 8:
        parts += [c.ellipse(0, canal_v, 17, 9), c.ellipse(0, canal_v + 12, 3.5, 9)]
    holes = canal
    if z > 5:
        place = (z + 4) % 24
        opening = float(np.clip(6 - abs(place - 12), 0, 4.5))
        if opening > 0.5:
            for side in SIDES:
                holes = np.minimum(holes, c.ellipse(side * 0.42 * half, v0 + 2, opening, opening * 1.4, side * 0.4))
    return blend(*parts, radius_mm=6), holes


def _draw_bones(s: Section, hips: dict[float, FloatArray], outline: FloatArray) -> None:
    c, z, hu = s.canvas, s.z, s.person.hu
    inside = outline - 2
    found = _sacrum(s)
    if found is not None:
        sacrum, holes = found
        sacrum = common(sacrum + 0.7 * s.smooth, 0.3 - holes, inside)
        if z > PROMONTORY_MM and (z - PROMONTORY_MM) % 36 > 28:
            c.paint(c.coverage(c.ellipse(0, 36 - 0.1 * (z - 92), 27, 18)), s.tissue("disc"), LABELS["soft tissue"])
        s.bone(sacrum, 1.1, marrow_sd=75)
        c.paint(c.coverage(holes), hu["fat"] + 25, LABELS["fat"])
        if z > 20:
            c.paint(c.coverage(holes + 3.0), hu["cord"] - 8, LABELS["fluid"])
    for side, hip in hips.items():
        hip = common(hip, inside)
        if found is not None and z > 25:
            # The joint is a cleft of 2–3 mm between the two bones.
            hip = common(hip, 2.4 - sacrum)
        s.bone(hip, 1.5, marrow_sd=75)
        cartilage = common(c.ellipsoid(Ellipsoid((side * 89, 0, 0), (28, 28, 28))), -c.v - 30)
        c.paint(c.coverage(cartilage) * (c.labels != LABELS["bone"]), hu["muscle"] + 20, LABELS["soft tissue"])
    if -52 < z < -4:
        disc = common(np.abs(c.u) - 2.6, c.ellipse(0, -54, 9, 11))
        c.paint(c.coverage(disc), s.tissue("cartilage"), LABELS["soft tissue"])
    _draw_femora(s)
    bony = ((c.labels == LABELS["bone"]) | (c.labels == LABELS["marrow"])).astype(np.float32)
    for lesion in s.person.lesions:
        if lesion.site == "bone":
            s.lesion(lesion, bony)


def _draw_femora(s: Section) -> None:
    c, z = s.canvas, s.z
    shaft = c.tube_distance(s.person.tubes["femur"])
    for side in SIDES:
        parts = [np.full_like(c.u, FAR_MM)]
        if shaft is not None:
            parts.append(np.where(side * c.u > 0, shaft, FAR_MM))
        parts.append(c.ellipsoid(Ellipsoid((side * 88, 0, 0), (24, 24, 24))))
        parts.append(c.ellipsoid(Ellipsoid((side * 127, 17, -14), (13, 16, 22), side * -0.3)))
        femur = blend(*parts, radius_mm=4) + 0.4 * s.smooth
        s.bone(femur, 1.3 if z > -25 else 3.0, marrow_sd=75)
        # The arch of dense trabeculae that carries the load from the socket's roof.
        if z > -20:
            load = np.abs(c.ellipse(side * 80, -3, 12, 17) + 2 * s.smooth) - 4
            c.paint(c.coverage(common(load, femur + 3)) * np.float32(0.22), s.person.hu["trabecular"] + 320, LABELS["marrow"])
