"""What lies above the diaphragm: lungs with vessels and airways, heart, great vessels."""

from __future__ import annotations

import numpy as np

from finegrain.simulate.phantom.drawing import Ellipsoid, blend, common
from finegrain.simulate.phantom.section import LABELS, Section, cage_half
from finegrain.simulate.phantom.texture import FloatArray

CHAMBERS = ("right ventricle", "right atrium", "left atrium", "left ventricle")
"""Order of painting: the left ventricle last, for its thick wall is the septum."""

HEART_CORE = Ellipsoid((8, -10, 22), (34, 26, 34))
"""Valves, septum and fat between the chambers, mm."""


def _heart_distance(s: Section) -> FloatArray:
    wall = {"left ventricle": 9.0, "right ventricle": 3.0, "right atrium": 2.0, "left atrium": 2.0}
    chambers = (s.canvas.ellipsoid(s.person.organs[name], wall[name]) for name in CHAMBERS)
    return blend(*chambers, s.canvas.ellipsoid(HEART_CORE), radius_mm=9)


def _mediastinum(s: Section, heart: FloatArray) -> FloatArray:
    c, z = s.canvas, s.z
    _, b = cage_half(z)
    wide = float(np.interp(z, [-40, 30, 70, 110, 160], [19, 21, 25, 29, 33]))
    # The lungs meet in front behind the sternum, at the anterior junction, and again reach behind beside the spine.
    taper = np.interp(c.v / b, [-1, -0.85, -0.55, -0.2, 0.1, 0.45, 0.8], [0.06, 0.12, 0.5, 0.86, 1, 0.82, 0.7])
    band = (np.abs(c.u) - np.float32(wide) * taper).astype(np.float32)
    spine = c.ellipse(0, 62, 22, 26)
    aorta = s.canvas.ellipse(26, 43, 13.5, 13.5) if z < 104 else band
    return blend(heart - 5, band, spine, aorta, radius_mm=14)


def draw_lungs(s: Section) -> FloatArray:
    """Parenchyma, vessels and small airways; gives the lungs' coverage."""
    c = s.canvas
    lung = common(s.cage + 3.0, -_mediastinum(s, _heart_distance(s)), s.chest + 0.5)
    cover = c.coverage(lung)
    if not cover.any():
        return cover
    # +25 HU per 9 cm towards the back: blood and weight in a supine patient.
    base = s.person.hu["lung"] + np.float32(25 / 90) * c.v + np.float32(12) * s.smooth
    spots = np.maximum(s.person.soft.sample(c.u, c.v, s.z, offset_mm=401) - 1.5, 0)
    c.paint(cover, base + 24 * s.soft + 55 * spots, LABELS["lung"])
    # Lobes: the oblique fissure, a plate of pleura that a slab shows as a faint line.
    for side in (-1.0, 1.0):
        level = s.z - (8 + 1.15 * c.v + 6 * s.smooth)
        plate = np.clip(1 - np.abs(level) / 2.2, 0, 1) * (np.sign(c.u) == side)
        c.paint(cover * plate.astype(np.float32) * np.float32(0.1), -100.0, LABELS["lung"])

    vessels = c.thin_tube_coverage(s.person.tubes["lung vessels"]) * cover
    c.paint(vessels, s.person.hu["lung vessel"], LABELS["vessel"])
    for lesion in s.person.lesions:
        if lesion.site == "lung" and abs(lesion.ball.center_mm[2] - s.z) < lesion.ball.semi_axes_mm[2]:
            d = c.ellipsoid(lesion.ball) + 0.4 * s.smooth
            ramp = np.clip(0.5 - d / np.float32(c.pixel_mm + lesion.edge_mm), 0, 1)
            c.paint(ramp * cover, lesion.hu, LABELS["lesion"])
    return cover


def draw_mediastinum(s: Section) -> None:
    """Heart with chambers, great vessels, gullet, windpipe and main bronchi."""
    c, hu = s.canvas, s.person.hu
    heart = _heart_distance(s)
    above = s.chest + 2.0
    c.paint(c.coverage(common(heart, above)), s.tissue("myocardium", 5), LABELS["heart"])
    groove = np.clip(1 - np.abs(heart + 1.5) / 2.5, 0, 1) * np.clip(s.smooth, 0, 1)
    c.paint(c.coverage(common(heart, above)) * groove, hu["fat"] + 15, LABELS["fat"])
    for name in CHAMBERS:
        trabeculated = 1.2 if "ventricle" in name else 0.6
        d = common(c.ellipsoid(s.person.organs[name]) + trabeculated * s.smooth, above)
        if name == "left ventricle":
            wall = common(c.ellipsoid(s.person.organs[name], 8.0) + 0.5 * s.smooth, heart, above)
            c.paint(c.coverage(wall), s.tissue("myocardium", 5), LABELS["heart"])
        lift = 1.06 if name.startswith("left") else 0.96
        c.paint(c.coverage(d), hu["heart"] * lift + 5 * s.soft, LABELS["heart"])

    gullet = c.tube_distance(s.person.tubes["esophagus"])
    if gullet is not None and s.z > -40:
        c.paint(c.coverage(gullet), s.tissue("bowel wall", 8), LABELS["soft tissue"])
        c.paint(c.coverage(gullet + 4.3) * np.clip(1.2 * s.smooth, 0, 1), hu["gas"] + 350, LABELS["bowel gas"])
    for name, blood in (("vein", "vein"), ("pulmonary", "heart"), ("aorta", "aorta")):
        tube = c.tube_distance(s.person.tubes[name])
        if tube is None:
            continue
        d = tube + 0.4 * s.smooth
        c.paint(c.coverage(d - 1.0), s.tissue("muscle", 5) - 5, LABELS["soft tissue"])
        c.paint(c.coverage(d), hu[blood] + 4 * s.soft, LABELS["vessel"])
    _nodes(s)


def draw_airways(s: Section) -> None:
    """Windpipe and bronchi: soft wall, air inside."""
    c = s.canvas
    air = c.tube_distance(s.person.tubes["airways"])
    if air is None:
        return
    inside = c.coverage(common(s.cage + 6.0, s.chest + 4.0))
    c.paint(c.coverage(air - 0.8) * inside, s.person.hu["trachea wall"], LABELS["soft tissue"])
    c.paint(c.coverage(air) * inside, -990.0, LABELS["airway"])


def _nodes(s: Section) -> None:
    """Small lymph nodes and thymus strands in the fat of the upper mediastinum."""
    c = s.canvas
    band = c.coverage(c.ellipse(0, -10, 26, 55)) * c.coverage(s.chest + 3)
    fat = c.labels == LABELS["fat"]
    islands = np.clip(2.5 * (s.person.smooth.sample(c.u * 2, c.v * 2, 2 * s.z, offset_mm=77) - 1.35), 0, 1)
    c.paint(band * fat * islands, s.tissue("muscle", 8) - 8, LABELS["soft tissue"])
