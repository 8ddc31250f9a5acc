"""Who is drawn: sizes, HU, contrast phase, organs, trees and lesions of one virtual patient, all from one seed.

Body coordinates in mm: u to the image's right (the patient's left), v to the back, z to the head. z = 0 is a little
below the top of the right diaphragm. The canonical sizes are those of a slim adult as seen on chest and abdomen CT;
single numbers were set by eye beside real slices, no atlas was copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from finegrain.simulate.phantom.drawing import Ellipsoid, Frame, superellipse_distance
from finegrain.simulate.phantom.texture import TextureTile, Waves, power_law_tile
from finegrain.simulate.phantom.trees import Points, Tubes, join, murray_tree, polyline

Z_RANGE_MM = (-165.0, 160.0)
"""Lowest and highest z that the anatomy covers: above the iliac crests, below the shoulders."""

MAX_HALF_WIDTH_MM = 162.0
"""Half width of the widest patient before warp and shift, so that 350 mm hold everybody."""

HU_BY_PHASE: dict[str, dict[str, float]] = {
    "native": {
        "aorta": 43, "heart": 43, "lung vessel": 43, "vein": 43, "portal": 43, "hepatic vein": 43, "myocardium": 48,
        "liver": 57, "spleen": 48, "cortex": 33, "medulla": 31, "pancreas": 40, "bowel wall": 42, "muscle": 52,
    },
    "arterial": {
        "aorta": 300, "heart": 260, "lung vessel": 200, "vein": 70, "portal": 110, "hepatic vein": 62,
        "myocardium": 105, "liver": 68, "spleen": 120, "cortex": 175, "medulla": 75, "pancreas": 100, "bowel wall": 85,
        "muscle": 57,
    },
    "portal": {
        "aorta": 165, "heart": 158, "lung vessel": 150, "vein": 145, "portal": 165, "hepatic vein": 152,
        "myocardium": 112, "liver": 110, "spleen": 121, "cortex": 185, "medulla": 160, "pancreas": 95, "bowel wall": 88,
        "muscle": 61,
    },
}  # fmt: skip
"""Mean HU at 120 kV by contrast phase; textbook values, e.g. unenhanced liver 50–65, spleen 45–55, blood 40–45,
portal-phase liver 100–120 and aorta 140–180, arterial aorta 250–350 (iodine depends on protocol and body)."""

FIXED_HU: dict[str, float] = {
    "fat": -104, "skin": 30, "lung": -848, "cortical": 950, "trabecular": 170, "disc": 85, "cartilage": 110, "cord": 28,
    "bile": 8, "bowel content": 18, "trachea wall": 20, "gas": -985,
}  # fmt: skip
"""Mean HU that contrast does not change much (lung −900…−780, cortical bone 800–1300, trabecular 120–250)."""

TEXTURE_SD: dict[str, float] = {
    "fat": 9.5, "muscle": 2.6, "liver": 2.3, "myocardium": 3.5, "spleen": 3.5, "bile": 2, "disc": 4, "skin": 10, "pancreas": 7,
}  # fmt: skip
"""SD in HU of a tissue's texture before the scanner blurs it; 5 where a tissue is not named.

Fat, muscle and liver are measured, as are the two tables below: they were set so that patients scanned with the same kernel at
the same noise come near the spectra of two real series, CPTAC-PDA chest (Siemens, B40f) and TCGA-OV abdomen (Toshiba, FC13),
both on TCIA. `benchmarks/phantom_texture.py` repeats the measurement. Mean |ln(virtual/real)| of the spectra reached on the two:
lung 0.27 and 0.19, liver 0.18 and 0.19, muscle 0.23 and 0.21, trabecular bone 0.57 and 0.12, fat 0.50 and 0.71 (of which most is
noise, that of the real patients being stronger near the skin). Two patients are no population. The others follow by eye."""

TEXTURE_BETA = {"soft": 2.4, "lung": 1.3, "bone": 1.4}
"""Exponent of 2-D power in a slice, by tile, before vessels and strands are drawn and the scanner blurs; measured as above, but
that of soft tissue was chosen by eye and found to need no change."""

LUNG_TEXTURE_SD = 45.0
"""SD in HU of the parenchyma between the vessels that are drawn; measured as above."""

Vector = tuple[float, float, float]

ORGANS: dict[str, tuple[Vector, Vector, float]] = {
    "left ventricle": ((36, -10, 16), (21, 15, 28), 0.75),
    "right ventricle": ((8, -34, 18), (31, 15, 30), 0.25),
    "right atrium": ((-28, -8, 24), (18, 22, 27), 0.1),
    "left atrium": ((6, 17, 42), (30, 15, 20), 0.0),
    "heart core": ((8, -10, 22), (34, 26, 34), 0.0),
    "fat pad right": ((-20, -40, 2), (26, 18, 26), 0.0),
    "fat pad left": ((36, -40, 4), (30, 17, 28), 0.2),
    "liver right": ((-56, 4, -50), (76, 82, 88), 0.0),
    "liver left": ((4, -40, -36), (68, 34, 42), 0.15),
    "caudate": ((-10, 8, -48), (14, 16, 25), 0.0),
    "gallbladder": ((-42, -36, -100), (13, 17, 26), 0.4),
    "spleen": ((86, 36, -46), (36, 50, 48), -0.3),
    "spleen hilum": ((56, 18, -50), (22, 32, 44), -0.3),
    "stomach fundus": ((50, 4, -34), (34, 34, 34), 0.0),
    "stomach body": ((50, -34, -62), (30, 26, 44), 0.5),
    "stomach antrum": ((18, -38, -84), (36, 16, 20), 0.15),
    "kidney right": ((-58, 46, -118), (24, 30, 54), -0.45),
    "kidney left": ((60, 46, -108), (24, 30, 55), 0.45),
}
"""Centre, semi-axes (mm) and angle (rad) of organs in a patient of canonical size."""


@dataclass(frozen=True)
class Lesion:
    """A small round thing that a reader looks for."""

    site: str
    ball: Ellipsoid
    hu: float
    edge_mm: float


@dataclass(frozen=True)
class Person:
    """All that is drawn by chance about one patient, once."""

    frame: Frame
    fat: float
    muscle: float
    texture: float
    phase: str
    hu: dict[str, float]
    soft: TextureTile
    smooth: TextureTile
    bone: TextureTile
    lung: TextureTile
    outline: Waves
    organs: dict[str, Ellipsoid]
    tubes: dict[str, Tubes]
    small_bowel: tuple[tuple[Tubes, float], ...]
    """Loops and the HU of their content."""
    lesions: tuple[Lesion, ...]
    vertebra_phase_mm: float
    rib_phase_mm: float


# --- surfaces shared by drawing and by growing trees; all accept arrays -----------------------------------------------


def cage_axes(z: NDArray[np.floating] | float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Half width and half depth in mm of the inner chest and belly wall."""
    knots = [-170.0, -120.0, -60.0, 0.0, 50.0, 90.0, 125.0, 160.0]
    half_width = np.asarray(np.interp(z, knots, [110.0, 113, 117, 117, 113, 104, 90, 66]))
    half_depth = np.asarray(np.interp(z, knots, [74.0, 76, 82, 87, 88, 84, 72, 52]))
    return half_width, half_depth


def cage_distance(u: NDArray[np.floating], v: NDArray[np.floating], z: NDArray[np.floating] | float) -> NDArray:
    """Distance in mm to the inner wall: a superellipse of power 2.3 in every section, flattened behind; negative inside."""
    half_width, half_depth = cage_axes(z)
    # The back is flatter than the front: the lungs reach back beside the spine.
    behind = np.clip(v / half_depth.astype(np.float32), 0, 1)
    narrowed: NDArray[np.floating] = u * (1 - 0.2 * behind**2).astype(np.float32)
    return superellipse_distance(narrowed, v, half_width, half_depth, 2.3)


def diaphragm_mm(u: NDArray[np.floating], v: NDArray[np.floating]) -> NDArray:
    """Height z of the diaphragm: two domes that fall off towards the wall, lowest at the back."""
    right = 8 - 70 * ((u + 50) / 75) ** 2
    left = -6 - 70 * ((u - 54) / 75) ** 2
    center = -16 - 70 * (u / 70) ** 2
    soft_maximum = 9 * np.log(np.exp(right / 9) + np.exp(left / 9) + np.exp(center / 9))
    return soft_maximum - 105 * (np.maximum(v + 5, 0) / 85) ** 2 - 45 * (np.maximum(-v - 5, 0) / 85) ** 2


def in_lung(p: Points) -> NDArray[np.bool_]:
    """Whether points lie in a lung, away from its surface."""
    u, v, z = p.T
    heart = np.hypot(np.hypot((u - 14) / 62, (v + 12) / 48), (z - 22) / 46) < 1
    middle = np.abs(u) < np.where(np.abs(v - 58) < 28, 26, 24)
    return (cage_distance(u, v, z) < -4) & (z > diaphragm_mm(u, v) + 4) & ~heart & ~middle & (z < 150)


# --- drawing by lot ---------------------------------------------------------------------------------------------------


HEART = (
    "left ventricle", "right ventricle", "right atrium", "left atrium", "heart core", "fat pad right", "fat pad left",
)  # fmt: skip
"""What moves and grows with the heart; `heart core` is valves, septum and the fat between the chambers."""

HEART_CENTER_MM = np.array([8.0, -10.0, 24.0])


@dataclass(frozen=True)
class _Build:
    """How this patient's inside differs from the canonical one: a smooth displacement of everything, and the heart's own
    place, size and lie (upright in the slender, across in the stout), which the vessels at its base follow."""

    waves: tuple[Waves, Waves, Waves]
    heart_turn_rad: float
    heart_scale: float
    heart_shift_mm: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, fat: float) -> _Build:
        waves = tuple(Waves.draw(rng, rms=rms, shortest_mm=80, longest_mm=240) for rms in (3.5, 3.0, 6.0))
        return cls(
            (waves[0], waves[1], waves[2]),
            heart_turn_rad=rng.normal(0.12 * (1 - fat), 0.2),
            heart_scale=float(np.clip(np.exp(rng.normal(0.05, 0.1)), 0.88, 1.25)),
            heart_shift_mm=rng.normal(0, 1, 3) * np.array([4.0, 2.5, 6.0]),
        )

    def moved(self, p: Points) -> Points:
        """Where canonical points lie in this patient, mm (shape: n 3)."""
        c, s = np.cos(self.heart_turn_rad), np.sin(self.heart_turn_rad)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        away = p - HEART_CENTER_MM
        near = np.exp(-((np.linalg.norm(away, axis=1) / 58) ** 4))[:, None]
        heart = self.heart_scale * away @ turn.T - away + self.heart_shift_mm
        u, v, z = p.T
        return p + near * heart + np.stack([wave.at(u, v, z) for wave in self.waves], axis=1)

    def tubes(self, t: Tubes) -> Tubes:
        """Tubes carried along; they stay connected, for the displacement is continuous."""
        return Tubes(self.moved(t.start_mm), self.moved(t.end_mm), t.start_radius_mm, t.end_radius_mm)

    def organ(self, rng: np.random.Generator, name: str) -> Ellipsoid:
        """An organ carried along, with a jitter of its own in place, size and angle."""
        center, axes, angle = ORGANS[name]
        heart = name in HEART
        move, grow = (1.5, 0.05) if heart else (3.5, 0.09)
        c = self.moved(np.array([center], dtype=np.float64))[0] + rng.normal(0, move, 3)
        a = np.array(axes) * np.clip(1 + rng.normal(0, grow, 3), 0.8, 1.2) * (self.heart_scale if heart else 1.0)
        if name == "liver left":  # from a stub to one that reaches the spleen
            a *= np.array([rng.uniform(0.52, 0.95), rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.05)])
            c[0] -= 6
        turn = angle + rng.normal(0, 0.12) + (self.heart_turn_rad if heart else 0.0)
        return Ellipsoid((c[0], c[1], c[2]), (a[0], a[1], a[2]), turn)


def _unit(d: Points) -> Points:
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def _lung_vessels(rng: np.random.Generator) -> Tubes:
    parts = []
    for side in (-1.0, 1.0):
        n = 26
        root = np.column_stack([side * rng.uniform(28, 38, n), rng.normal(14, 9, n), rng.uniform(8, 92, n)])
        aim = np.column_stack([side * rng.uniform(0.35, 1, n), rng.permutation(np.linspace(-1.3, 1, n)), rng.normal(0, 0.35, n)])
        aim[:, 2] += (root[:, 2] - 52) / 50
        parts.append(
            murray_tree(
                rng, roots_mm=root, directions=_unit(aim), radii_mm=rng.uniform(1.3, 3.2, n), inside=in_lung,
                stop_radius_mm=0.32,
            )
        )  # fmt: skip
    # Thin vessels everywhere else, as if their feeding branches had come from other sections: a lung has no bare parts.
    n = 5800
    p = np.column_stack([rng.uniform(-115, 115, n), rng.uniform(-85, 88, n), rng.uniform(-90, 155, n)])
    p = p[in_lung(p)]
    aim = p - np.column_stack([np.sign(p[:, 0]) * 34, np.full(len(p), 14.0), np.full(len(p), 50.0)])
    aim += rng.normal(0, 12, aim.shape)
    parts.append(
        murray_tree(
            rng, roots_mm=p, directions=_unit(aim), radii_mm=rng.uniform(0.48, 1.12, len(p)), inside=in_lung,
            stop_radius_mm=0.32,
        )
    )  # fmt: skip
    return join(*parts)


def _airways(rng: np.random.Generator) -> Tubes:
    parts = [
        polyline([(0, 8, 175), (1, 14, 120), (0, 22, 84)], 8.5),
        polyline([(0, 22, 84), (-18, 20, 72), (-34, 18, 60)], [7.5, 7, 6.0]),
        polyline([(0, 22, 84), (20, 23, 70), (38, 22, 57)], [7.0, 6.5, 5.5]),
        polyline([(-34, 18, 60), (-42, 22, 38), (-46, 32, 15), (-50, 40, -8)], [5.0, 4.2, 3.4, 2.2]),
        polyline([(38, 22, 57), (44, 28, 36), (48, 38, 12), (50, 44, -8)], [4.8, 4.0, 3.2, 2.2]),
    ]
    for side in (-1.0, 1.0):
        n = 6
        root = np.column_stack([side * rng.uniform(36, 44, n), rng.normal(20, 4, n), rng.uniform(20, 70, n)])
        aim = np.column_stack([side * rng.uniform(0.5, 1, n), rng.uniform(-1, 0.9, n), (root[:, 2] - 48) / 40])
        parts.append(
            murray_tree(
                rng, roots_mm=root, directions=_unit(aim), radii_mm=rng.uniform(1.7, 2.6, n), inside=in_lung,
                stop_radius_mm=1.35, length_in_radii=(6, 10),
            )
        )  # fmt: skip
    return join(*parts)


def _liver_vessels(rng: np.random.Generator, organs: dict[str, Ellipsoid], *, hepatic: bool) -> Tubes:
    right = organs["liver right"]

    def inside(p: Points) -> NDArray[np.bool_]:
        u, v, z = p.T
        ball = sum(((p[:, i] - right.center_mm[i]) / (0.93 * right.semi_axes_mm[i])) ** 2 for i in range(3)) < 1
        left = (np.abs(u - 10) < 42) & (np.abs(v + 38) < 20) & (np.abs(z + 36) < 28)
        return (ball | left) & (cage_distance(u, v, z) < -9) & (z < diaphragm_mm(u, v) - 8)

    if hepatic:
        root = np.array([(-28.0, 10, -14), (-26, 4, -12), (-18, 2, -14)])
        aim = np.array([(-1.0, 0.25, -0.35), (-0.5, -1.0, -0.5), (0.6, -1.0, -0.3)])
        radius = rng.uniform(3.4, 4.6, 3)
    else:
        root = np.array([(-34.0, 0, -58), (-34, 2, -62), (-30, -6, -52), (-24, -10, -48)])
        aim = np.array([(-1.0, 0.1, 0.25), (-0.8, 0.8, -0.5), (-0.4, -0.8, -0.3), (0.5, -1.0, 0.1)])
        radius = rng.uniform(3.4, 4.8, 4)
    aim = aim + rng.normal(0, 0.12, aim.shape)
    return murray_tree(
        rng, roots_mm=root, directions=_unit(aim), radii_mm=radius, inside=inside, stop_radius_mm=0.7,
        length_in_radii=(4.5, 8),
    )  # fmt: skip


def _mesentery(rng: np.random.Generator) -> Tubes:
    def inside(p: Points) -> NDArray[np.bool_]:
        u, v, z = p.T
        return (cage_distance(u, v, z) < -14) & (v < 30) & (z < diaphragm_mm(u, v) - 25)

    n = 46
    root = np.column_stack([rng.normal(0, 14, n), rng.uniform(-20, 14, n), rng.uniform(-180, -62, n)])
    aim = np.column_stack([rng.normal(0, 1, n), rng.uniform(-1, 0.1, n), rng.normal(-0.2, 0.4, n)])
    return murray_tree(
        rng, roots_mm=root, directions=_unit(aim), radii_mm=rng.uniform(1.2, 2.4, n), inside=inside, stop_radius_mm=0.5,
        length_in_radii=(7, 14),
    )  # fmt: skip


def _small_bowel(rng: np.random.Generator) -> tuple[tuple[Tubes, float], ...]:
    loops = []
    for _ in range(22):
        p = np.array([rng.uniform(-60, 75), rng.uniform(-52, 2), rng.uniform(-185, -88)])
        heading = _unit(rng.standard_normal((1, 3)))[0]
        path = [p]
        for _ in range(6):
            heading = _unit((heading + rng.normal(0, 0.55, 3))[None])[0]
            step = p + 13 * heading
            a, b = cage_axes(step[2])
            if np.hypot(step[0] / (a - 26), (step[1] + 14) / (b - 26)) > 1 or step[1] > 8 or step[2] > -84:
                heading = _unit((np.array([5.0, -25.0, -140.0]) - p)[None])[0]
                step = p + 13 * heading
            p = step
            path.append(p)
        radius = rng.uniform(6.5, 11.5) * rng.uniform(0.82, 1.15, len(path))
        content = float(rng.choice([rng.uniform(5, 35), rng.uniform(45, 75)]))
        loops.append((polyline(np.array(path), list(radius)), content))
    return tuple(loops)


def _named_tubes(rng: np.random.Generator) -> dict[str, Tubes]:
    thick = rng.normal(1, 0.07)
    thick_vein = rng.normal(1, 0.1)
    aorta = [(-2, -6, 46), (-15, -20, 68), (-14, -20, 90), (0, -4, 107), (15, 18, 109), (24, 36, 98), (26, 43, 70),
             (26, 43, 20), (17, 38, -30), (8, 33, -70), (5, 31, -180)]  # fmt: skip
    aorta_radius = np.array([15, 15, 14.5, 13.5, 13, 12.5, 12, 11.5, 10.5, 9.5, 8.5]) * np.clip(thick, 0.88, 1.15)
    veins = [
        polyline([(-30, -2, 40), (-30, -12, 75), (-25, -18, 115)], 8.5 * thick_vein),
        polyline([(-25, -18, 114), (-34, -18, 175)], 6.5),
        polyline([(-24, -19, 114), (0, -26, 124), (26, -22, 140), (34, -16, 175)], 6.0),
        polyline([(-26, 6, 22), (-25, 14, -8), (-22, 24, -60), (-18, 28, -180)], 10.5 * thick_vein),
        polyline([(-20, 26, -108), (-36, 34, -112), (-50, 44, -116)], [5.0, 4.5, 3.5]),
        polyline([(-16, 19, -100), (4, 15, -100), (28, 26, -102), (48, 42, -106)], [5.0, 4.5, 4.5, 3.5]),
    ]
    arteries = [
        polyline(np.array(aorta), list(aorta_radius)),
        polyline([(-10, -12, 104), (-16, -8, 135), (-24, -8, 175)], 5.5),
        polyline([(3, 0, 106), (4, 4, 140), (6, 4, 175)], 3.8),
        polyline([(14, 12, 108), (18, 16, 140), (24, 14, 175)], 4.6),
        polyline([(8, 28, -66), (8, 12, -66), (26, 10, -66)], 3.2),
        polyline([(8, 26, -84), (7, 10, -94), (5, 0, -120), (4, -8, -180)], 3.4),
        polyline([(10, 33, -104), (30, 38, -108), (50, 46, -108)], 2.4),
        polyline([(0, 33, -106), (-26, 40, -114), (-48, 46, -116)], 2.4),
    ]
    return {
        "aorta": join(*arteries),
        "vein": join(*veins),
        "pulmonary": join(
            polyline([(12, -32, 48), (19, -26, 72)], 12.5),
            polyline([(19, -26, 72), (34, 0, 74), (46, 18, 66)], [11, 9.5, 7]),
            polyline([(19, -24, 71), (-6, 4, 68), (-32, 8, 62), (-44, 14, 52)], [10, 9, 8.5, 6]),
            polyline([(46, 18, 66), (46, 30, 40), (50, 38, 10)], [6.5, 5.5, 3.5]),
            polyline([(-44, 14, 52), (-48, 26, 30), (-52, 36, 4)], [6, 5.5, 3.5]),
            polyline([(-16, 16, 46), (-36, 14, 42), (-54, 2, 40)], [6.5, 5.5, 3.5]),
            polyline([(28, 18, 46), (42, 18, 44), (58, 0, 48)], [6.5, 5.5, 3.5]),
        ),
        "portal": join(
            polyline([(-8, -12, -180), (-9, -10, -120), (-10, -2, -90), (-22, 0, -72), (-34, 0, -60)], [5, 5.5, 6.5, 6.5, 5.5]),
            polyline([(-10, 0, -86), (20, 8, -80), (48, 22, -70), (68, 28, -58)], [4.5, 4.2, 4, 3]),
        ),
        "esophagus": polyline([(3, 26, 175), (4, 34, 84), (10, 34, 40), (20, 20, -10), (32, 10, -24)], 6.5),
        "pancreas": polyline(
            [(-22, -4, -112), (-20, -8, -96), (0, -14, -88), (24, -6, -82), (46, 12, -74), (62, 24, -64)],
            [11, 12, 9, 9, 9, 7],
        ),
        "colon": polyline(
            [(-88, 14, -185), (-90, 10, -140), (-84, 0, -122), (-72, -32, -112), (-40, -56, -122), (5, -60, -132),
             (50, -56, -114), (84, -30, -88), (92, 8, -84), (92, 28, -110), (92, 26, -185)],
            list(rng.uniform(11, 19, 11)),
        ),
        "duodenum": polyline(
            [(-14, -30, -88), (-34, -10, -92), (-36, 4, -112), (-28, 8, -128), (0, 12, -132), (26, 8, -122)],
            [11, 12, 11, 11, 10, 9],
        ),
    }  # fmt: skip


def _lesions(rng: np.random.Generator, hu: dict[str, float]) -> tuple[Lesion, ...]:
    out: list[Lesion] = []
    while len(out) < 9:
        p = np.array([[rng.uniform(-105, 105), rng.uniform(-70, 75), rng.uniform(-60, 130)]])
        if in_lung(p)[0]:
            r = rng.uniform(1.5, 5)
            solid = rng.random() < 0.65
            ball = Ellipsoid(tuple(p[0]), (r, r * rng.uniform(0.8, 1.2), r * rng.uniform(0.8, 1.2)), rng.uniform(0, 3))
            out.append(Lesion("lung", ball, rng.normal(30, 10) if solid else rng.uniform(-650, -300), 0.6))
    for _ in range(int(rng.integers(4, 12))):
        r = rng.uniform(1.5, 7.5)
        p = np.array([[rng.uniform(-100, 10), rng.uniform(-55, 50), rng.uniform(-110, -5)]])
        ball = Ellipsoid(tuple(p[0]), (r, r * rng.uniform(0.85, 1.15), r), 0.0)
        delta = rng.choice([-1, 1], p=[0.75, 0.25]) * rng.uniform(8, 40)
        out.append(Lesion("liver", ball, hu["liver"] + float(delta), rng.uniform(0.5, 1.5)))
    for side in (-1, 1):
        if rng.random() < 0.5:
            r = rng.uniform(3, 12)
            p = np.array([[side * rng.uniform(66, 78), rng.uniform(38, 66), rng.uniform(-140, -85)]])
            out.append(Lesion("kidney", Ellipsoid(tuple(p[0]), (r, r, r)), rng.uniform(0, 12), 0.7))
    return tuple(out)


@lru_cache(maxsize=4)
def person(seed: int) -> Person:
    """The patient of a seed. Each part has its own stream of chance, so that a change of one leaves the others."""

    def stream(part: int) -> np.random.Generator:
        return np.random.default_rng([20_240, part, seed])

    rng = stream(0)
    phase = str(rng.choice(["native", "arterial", "portal"], p=[0.3, 0.2, 0.5]))
    iodine = rng.uniform(0.85, 1.15)
    blood = {"aorta", "heart", "lung vessel", "vein", "portal", "hepatic vein"}
    hu = {
        name: 43 + (value - 43) * iodine if name in blood else value + rng.normal(0, 3)
        for name, value in HU_BY_PHASE[phase].items()
    }
    hu |= {name: value + rng.normal(0, 2) for name, value in FIXED_HU.items()}
    hu["lung"] += rng.normal(0, 18)
    hu["cortical"] += rng.normal(0, 80)
    hu["trabecular"] = rng.uniform(120, 240)
    if rng.random() < 0.2:  # fatty liver, about a fifth to a quarter of adults
        hu["liver"] -= rng.uniform(10, 35)
    shape = stream(1)
    warp = Waves.draw(shape, rms=3.2), Waves.draw(shape, rms=3.2)
    fat, muscle = float(np.clip(shape.lognormal(0, 0.4), 0.5, 1.9)), shape.uniform(0.85, 1.15)
    widest = 96 + 40 * muscle + 1.3 * 11 * fat + 2  # at the armpits, where the wall is thickest
    frame = Frame(
        stretch_x=min(shape.uniform(0.96, 1.12), MAX_HALF_WIDTH_MM / widest), stretch_y=shape.uniform(0.92, 1.08),
        shift_mm=(shape.uniform(-3, 3), shape.uniform(-6, 6)), warp_x=warp[0], warp_y=warp[1],
    )  # fmt: skip
    build = _Build.draw(stream(14), fat)
    organs = {name: build.organ(shape, name) for name in ORGANS}
    tubes = {name: build.tubes(tube) for name, tube in _named_tubes(stream(2)).items()}
    tubes["lung vessels"] = _lung_vessels(stream(3))
    tubes["airways"] = build.tubes(_airways(stream(4)))
    tubes["portal tree"] = _liver_vessels(stream(5), organs, hepatic=False)
    tubes["hepatic tree"] = _liver_vessels(stream(6), organs, hepatic=True)
    tubes["mesentery"] = _mesentery(stream(7))
    return Person(
        frame=frame,
        fat=fat,
        muscle=muscle,
        texture=shape.uniform(0.75, 1.25),
        phase=phase,
        hu={name: float(value) for name, value in hu.items()},
        soft=power_law_tile(stream(8), beta=TEXTURE_BETA["soft"], finest_mm=1.6, coarsest_mm=40, pitch_mm=0.8),
        smooth=power_law_tile(stream(9), beta=3.5, finest_mm=9.0, coarsest_mm=35, n=64, pitch_mm=2.2),
        bone=power_law_tile(stream(10), beta=TEXTURE_BETA["bone"], finest_mm=1.0, coarsest_mm=10, pitch_mm=0.6),
        lung=power_law_tile(stream(13), beta=TEXTURE_BETA["lung"], finest_mm=1.2, coarsest_mm=12, pitch_mm=0.8),
        outline=Waves.draw(shape, rms=1.0, shortest_mm=80, longest_mm=260),
        organs=organs,
        tubes=tubes,
        small_bowel=_small_bowel(stream(11)),
        lesions=_lesions(stream(12), hu),
        vertebra_phase_mm=shape.uniform(0, 30),
        rib_phase_mm=shape.uniform(0, 27),
    )
