"""The wall around the organs: skin, fat, muscle, ribs, sternum, scapulae and spine."""

from __future__ import annotations

import numpy as np

from finegrain.simulate.phantom.drawing import FAR_MM, blend, common
from finegrain.simulate.phantom.section import LABELS, Trunk, cage_half
from finegrain.simulate.phantom.texture import FloatArray

SKIN_MM = 1.8
SPINE_V_MM = 57.0


def draw_wall(s: Trunk) -> FloatArray:
    """Paint fat, skin, muscle and the inner fat; gives the distance to the skin, mm."""
    c, z = s.canvas, s.z
    a, b = cage_half(z)
    du, dv = (c.u / np.float32(a)) ** 2, (c.v / np.float32(b)) ** 2
    side = du / np.maximum(du + dv, np.float32(1e-6))
    front = np.where(c.v < 0, 1 - side, 0)
    back = np.where(c.v >= 0, 1 - side, 0)
    wave = s.person.outline.on_grid(c.axis_mm, c.axis_mm, z)

    level = [-165.0, -60.0, 20.0, 60.0, 110.0]
    muscle_side = np.interp(z, level, [17.0, 10.0, 10.0, 22.0, 38.0])
    muscle_front = np.interp(z, level, [10.0, 9.0, 9.0, 13.0, 17.0])
    midline = np.exp(-((c.u / np.float32(16)) ** 2))
    spinal = np.exp(-(((np.abs(c.u) - 26) / np.float32(23)) ** 2))
    muscle = s.person.muscle * (
        side * muscle_side + front * (muscle_front - 4 * midline) + back * (11 + 11 * spinal + 4 * midline) + 12 * back * side
    )
    fat_front = np.interp(z, level, [20.0, 15.0, 12.0, 12.0, 9.0])
    fat = s.person.fat * (side * 11 + front * fat_front + back * 11) * (1 + 0.08 * wave) + 2 - back * 3 * midline
    skin = s.cage - (muscle + np.maximum(fat, 3.0)).astype(np.float32)

    c.paint(c.coverage(skin), s.person.hu["skin"] + 10 * s.soft, LABELS["soft tissue"])
    c.paint(c.coverage(skin + np.float32(SKIN_MM)), s.tissue("fat"), LABELS["fat"])
    within = c.coverage(skin + np.float32(SKIN_MM))
    c.paint(within * s.sheets(0.35, offset_mm=311) * np.float32(0.6), -30.0, LABELS["soft tissue"])

    depth = s.cage - muscle.astype(np.float32)
    bumps = 1.6 * s.smooth
    c.paint(c.coverage(depth + bumps), s.tissue("muscle"), LABELS["soft tissue"])
    # Fat between the layers of the wall and between the bundles of the back.
    layers = np.minimum(np.abs(s.cage - 0.42 * muscle + bumps), np.abs(s.cage - 0.74 * muscle - 1.2 * bumps)).astype(np.float32)
    gap = np.clip(0.1 + 0.8 * s.person.smooth.sample(c.u, c.v, z, offset_mm=97), 0, 1.5)
    wall = c.coverage(depth + 2) * c.coverage(-s.cage)
    c.paint(wall * c.coverage(layers - gap) * (1 - back * 0.6), s.tissue("fat"), LABELS["fat"])
    c.paint(wall * (0.2 + 0.1 * back) * s.sheets(0.9, offset_mm=211), s.person.hu["fat"] + 15, LABELS["fat"])
    c.paint(wall * np.clip(1.2 * s.person.soft.sample(c.u, c.v, z, offset_mm=53) - 2.4, 0, 0.6), -60.0, LABELS["fat"])
    c.paint(c.coverage(s.cage + 1.5), s.tissue("fat") + 6, LABELS["fat"])
    return skin


def draw_ribs(s: Trunk) -> None:
    """Ribs fall from back to front; in front they turn to cartilage, the lowest end at the side."""
    c, z = s.canvas, s.z
    _, b = cage_half(z)
    slope, pitch = 0.4, 27.0
    start = z + 0.34 * (b - c.v) + 0.22 * np.abs(c.u) + s.person.rib_phase_mm
    number = np.floor(start / pitch)
    along = ((start - number * pitch) - pitch / 2) / np.sqrt(1 + slope**2)
    across = s.cage - 4.5
    # A rib is flat: about 6 mm thick and 12 mm tall; distances to first order as for every ellipse.
    p, q = across / 3.1, along / 6.2
    f = np.sqrt(p * p + q * q)
    distance = ((f - 1) * f / np.maximum(np.hypot(p / 3.1, q / 6.2), 1e-6)).astype(np.float32)
    base = number * pitch - s.person.rib_phase_mm
    end_v = np.interp(base, [-120.0, -70.0, -40.0, 20.0, 60.0], [75.0, 45.0, 0.0, -38.0, -52.0])
    stop = np.interp(base, [-60.0, 0.0], [0.0, -95.0])
    near_spine = 14 - np.abs(c.u)
    exists = np.where(base > -125, 0.0, FAR_MM)
    bony = common(distance, (end_v - c.v).astype(np.float32), near_spine, exists.astype(np.float32))
    soft = common(distance, (c.v - end_v).astype(np.float32), (stop - c.v).astype(np.float32), exists.astype(np.float32))
    # Cartilage joins the sternum from about the seventh rib up, and the costal margin below it.
    c.paint(c.coverage(soft), s.person.hu["cartilage"] + 14 * s.soft, LABELS["soft tissue"])
    s.bone(bony, 1.1, marrow_sd=100)


def draw_sternum(s: Trunk) -> None:
    """The breastbone, from the xiphoid up."""
    if not -8 < s.z < 140:
        return
    _, b = cage_half(s.z)
    half = float(np.interp(s.z, [-8, 10, 60, 100, 130], [5, 15, 16, 21, 26]))
    s.bone(s.canvas.ellipse(0, -b - 4.5, half, 5.2), 1.0, marrow_sd=85)


def draw_scapulae(s: Trunk) -> None:
    """Shoulder blades: thin plates behind the upper ribs."""
    if s.z < 48:
        return
    a, _ = cage_half(s.z)
    grow = float(np.clip((s.z - 48) / 25, 0.2, 1))
    for side in (-1.0, 1.0):
        u0 = side * (a + 6)
        blade = s.canvas.ellipse(u0 - side * 4, 42, 3.0, 27 * grow, side * 0.62)
        edge = s.canvas.ellipse(u0 + side * 11, 22, 5.0, 9 * grow, side * 0.3)
        s.bone(blend(blade, edge, radius_mm=6), 1.3, marrow_sd=85)


def draw_spine(s: Trunk, skin: FloatArray) -> None:
    """Vertebrae with discs, canal, arches and processes."""
    c, z = s.canvas, s.z
    lumbar = float(np.clip((-z - 20) / 60, 0, 1))
    period = 25 + 7 * lumbar
    # Position within a vertebra, 0 at the middle of a disc; the period changes slowly, so integrate it in pieces.
    turn = (z + s.person.vertebra_phase_mm) / 25 if z > -20 else (-20 + s.person.vertebra_phase_mm) / 25
    if z <= -20:
        low = np.linspace(-20, z, 24)
        turn += float(np.trapezoid(1 / (25 + 7 * np.clip((-low - 20) / 60, 0, 1)), low))
    place = (turn % 1.0) * period
    from_disc = min(place, period - place)
    half_disc = 2.0 + 2.5 * lumbar
    waist = 1 - 0.1 * np.sin(np.pi * place / period)
    half_width, half_depth = (15.5 + 7 * lumbar) * waist, (13.5 + 2.5 * lumbar) * waist
    v0 = SPINE_V_MM + 1.5 * lumbar
    canal_v = v0 + half_depth + 6.5
    canal = c.ellipse(0, canal_v, 9.5 + 2 * lumbar, 7.5)
    body = c.ellipse(0, v0, half_width, half_depth) + 0.5 * s.smooth
    body = common(body, -(canal - 0.5))

    if from_disc < half_disc:
        c.paint(c.coverage(body), s.tissue("disc"), LABELS["soft tissue"])
        vertebra = np.full_like(body, FAR_MM)
    else:
        vertebra = body
    # The arch spans the upper two thirds of a vertebra; joints bridge the rest.
    phase = place / period
    ring = common(c.ellipse(0, canal_v + 1, 14 + 2 * lumbar, 12.0), -(canal - 0.3))
    upper = float(np.clip(3 * (0.8 - abs(phase - 0.55) * 2), 0, 1))
    parts: list[FloatArray] = []
    if upper > 0:
        parts.append(common(ring, canal_v - 4 - 16 * np.float32(upper) - c.v + 14))
        reach = 20 + 10 * upper
        for side in (-1.0, 1.0):
            parts.append(c.ellipse(side * (13 + reach / 2), canal_v + 1 - 5 * lumbar, reach / 2, 4.2, side * -0.25))
    for side in (-1.0, 1.0):
        parts.append(c.ellipse(side * (12 + 4 * lumbar), canal_v + 6, 5.5, 6.5, side * 0.5))
    tip = float(np.clip(1.3 - abs(phase - 0.3) * 2.6, 0.15, 1))
    parts.append(c.ellipse(0, canal_v + 9 + 14 * tip, 2.6 + 1.4 * lumbar, 14 * tip + 2))
    arch = blend(*parts, radius_mm=3.5)
    arch = common(arch, -(canal - 0.3), skin + 9)
    s.bone(blend(vertebra, arch, radius_mm=2.0), 0.7 + (3.0 if from_disc < half_disc + 1.6 else 0.0))
    c.paint(c.coverage(canal + 1), s.person.hu["fat"] + 30, LABELS["fat"])
    c.paint(c.coverage(canal + 1.6), 14 + 3 * s.soft, LABELS["fluid"])
    c.paint(c.coverage(c.ellipse(0, canal_v - 0.5, 5.5, 4.2)), s.person.hu["cord"] + 8, LABELS["soft tissue"])


def draw_back_muscles(s: Trunk) -> None:
    """Psoas and crura: the muscles inside the wall, beside the lumbar spine."""
    c, z = s.canvas, s.z
    size = float(np.clip((-z - 70) / 70, 0, 1))
    for side in (-1.0, 1.0):
        if size > 0.1:
            psoas = c.ellipse(side * (28 + 6 * size), 58, 6 + 12 * size, 8 + 10 * size, side * 0.3)
            c.paint(c.coverage(psoas + 1.2 * s.smooth), s.tissue("muscle"), LABELS["soft tissue"])
            quadratus = c.ellipse(side * 56, 66, 15, 5 + 4 * size, side * 0.4)
            c.paint(c.coverage(common(quadratus, s.cage - 2)), s.tissue("muscle"), LABELS["soft tissue"])
        if -130 < z < -5:
            crus = c.ellipse(side * 17 + 1, 38, 3.2, 13, side * -0.45)
            c.paint(c.coverage(crus + 0.5 * s.smooth), s.tissue("muscle"), LABELS["soft tissue"])
