"""What lies above the diaphragm: lungs with vessels and airways, heart, great vessels."""

from __future__ import annotations

import numpy as np

from finegrain.simulate.phantom.drawing import FAR_MM, blend, common
from finegrain.simulate.phantom.person import LUNG_TEXTURE_SD
from finegrain.simulate.phantom.section import LABELS, Trunk, cage_half
from finegrain.simulate.phantom.texture import FloatArray

CHAMBERS = ("right ventricle", "right atrium", "left atrium", "left ventricle")
"""Order of painting: the left ventricle last, for its thick wall is the septum."""


def _heart_distance(s: Trunk) -> FloatArray:
    wall = {"left ventricle": 9.0, "right ventricle": 3.0, "right atrium": 2.0, "left atrium": 2.0}
    chambers = (s.canvas.ellipsoid(s.person.organs[name], wall[name]) for name in CHAMBERS)
    return blend(*chambers, s.canvas.ellipsoid(s.person.organs["heart core"]), radius_mm=9)


def _mediastinum(s: Trunk, heart: FloatArray) -> FloatArray:
    c, z = s.canvas, s.z
    _, b = cage_half(z)
    wide = float(np.interp(z, [-40, 30, 70, 110, 160], [19, 21, 25, 29, 33]))
    # The lungs meet in front behind the sternum, at the anterior junction, and again reach behind beside the spine.
    taper = np.interp(c.v / b, [-1, -0.85, -0.55, -0.2, 0.1, 0.45, 0.8], [0.06, 0.12, 0.5, 0.86, 1, 0.82, 0.7])
    # No two mediastina are alike: fat widens them, and the lungs press them to this side and that.
    wide *= 0.86 + 0.16 * s.person.fat
    wave = s.person.outline.on_grid(c.axis_mm, c.axis_mm, z)
    band = (np.abs(c.u + 4.5 * wave) - np.float32(wide) * taper).astype(np.float32) + 2.2 * s.smooth
    spine = c.ellipse(0, 62, 22, 26)
    vessel = c.tube_distance(s.person.tubes["aorta"])
    aorta = np.full_like(band, FAR_MM) if vessel is None else vessel - 2.5
    pads = (c.ellipsoid(s.person.organs[name], -6 + 9 * s.person.fat) for name in ("fat pad right", "fat pad left"))
    return blend(heart - np.float32(2.5 + 2.5 * s.person.fat) + 1.5 * s.smooth, band, spine, aorta, *pads, radius_mm=18)


def draw_lungs(s: Trunk) -> FloatArray:
    """Parenchyma, vessels and small airways; gives the lungs' coverage."""
    c = s.canvas
    lung = common(s.cage + 3.0, -_mediastinum(s, _heart_distance(s)), s.chest + 0.5)
    cover = c.coverage(lung)
    if not cover.any():
        return cover
    # +25 HU per 9 cm towards the back: blood and weight in a supine patient.
    base = s.person.hu["lung"] + np.float32(25 / 90) * c.v + np.float32(4) * s.smooth
    grain = s.person.lung.sample(c.u, c.v, s.z) * np.float32(s.person.texture)
    # Small vessels seen end on: the bright tail of the texture is longer than the dark one.
    c.paint(cover, base + LUNG_TEXTURE_SD * grain + 50 * np.maximum(grain - 1.5, 0), LABELS["lung"])
    # Lobes: the oblique fissure, a plate of pleura that a slab shows as a faint line.
    for side in (-1.0, 1.0):
        level = s.z - (8 + 1.15 * c.v + 6 * s.smooth)
        plate = np.clip(1 - np.abs(level) / 2.2, 0, 1) * (np.sign(c.u) == side)
        c.paint(cover * plate.astype(np.float32) * np.float32(0.1), -100.0, LABELS["lung"])

    vessels = c.thin_tube_coverage(s.person.tubes["lung vessels"]) * cover
    c.paint(vessels, s.person.hu["lung vessel"], LABELS["vessel"])
    for lesion in s.person.lesions:
        if lesion.site == "lung":
            s.lesion(lesion, cover)
    return cover


def draw_mediastinum(s: Trunk) -> None:
    """Heart with chambers, great vessels, gullet, windpipe and main bronchi."""
    c, hu = s.canvas, s.person.hu
    heart = _heart_distance(s)
    above = s.chest + 2.0
    c.paint(c.coverage(common(heart, above)), s.tissue("myocardium"), LABELS["heart"])
    groove = np.clip(1 - np.abs(heart + 1.5) / 2.5, 0, 1) * np.clip(s.smooth, 0, 1)
    c.paint(c.coverage(common(heart, above)) * groove, hu["fat"] + 15, LABELS["fat"])
    for name in CHAMBERS:
        trabeculated = 1.2 if "ventricle" in name else 0.6
        d = common(c.ellipsoid(s.person.organs[name]) + trabeculated * s.smooth, above)
        if name == "left ventricle":
            wall = common(c.ellipsoid(s.person.organs[name], 8.0) + 0.5 * s.smooth, heart, above)
            c.paint(c.coverage(wall), s.tissue("myocardium"), LABELS["heart"])
        lift = 1.06 if name.startswith("left") else 0.96
        c.paint(c.coverage(d), hu["heart"] * lift + 5 * s.soft, LABELS["heart"])

    gullet = c.tube_distance(s.person.tubes["esophagus"])
    if gullet is not None and s.z > -40:
        c.paint(c.coverage(gullet), s.tissue("bowel wall"), LABELS["soft tissue"])
        c.paint(c.coverage(gullet + 4.3) * np.clip(1.2 * s.smooth, 0, 1), hu["gas"] + 350, LABELS["bowel gas"])
    for name, blood in (("vein", "vein"), ("pulmonary", "heart"), ("aorta", "aorta")):
        tube = c.tube_distance(s.person.tubes[name])
        if tube is None:
            continue
        d = tube + 0.4 * s.smooth
        # Inside the heart a great vessel has no wall of its own.
        wall = c.coverage(d - 1.0) * (c.labels != LABELS["heart"])
        c.paint(wall, s.tissue("muscle") - 5, LABELS["soft tissue"])
        c.paint(c.coverage(d), hu[blood] + 4 * s.soft, LABELS["vessel"])
    _nodes(s)


def draw_airways(s: Trunk) -> None:
    """Windpipe and bronchi: soft wall, air inside."""
    c = s.canvas
    air = c.tube_distance(s.person.tubes["airways"])
    if air is None:
        return
    inside = c.coverage(common(s.cage + 6.0, s.chest + 4.0))
    c.paint(c.coverage(air - 0.8) * inside, s.person.hu["trachea wall"], LABELS["soft tissue"])
    c.paint(c.coverage(air) * inside, -990.0, LABELS["airway"])


def _nodes(s: Trunk) -> None:
    """Small lymph nodes and thymus strands in the fat of the upper mediastinum."""
    c = s.canvas
    if s.z < 30:
        return
    band = c.coverage(c.ellipse(0, -10, 26, 55)) * c.coverage(s.chest + 3)
    fat = c.labels == LABELS["fat"]
    islands = np.clip(2.5 * (s.person.smooth.sample(c.u * 2, c.v * 2, 2 * s.z, offset_mm=77) - 1.35), 0, 1)
    c.paint(band * fat * islands, s.tissue("muscle") - 8, LABELS["soft tissue"])
