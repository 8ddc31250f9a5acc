"""What lies below the diaphragm: liver, spleen, kidneys, pancreas, bowel and their vessels."""

from __future__ import annotations

import numpy as np

from finegrain.simulate.phantom.drawing import blend, common
from finegrain.simulate.phantom.person import Lesion
from finegrain.simulate.phantom.section import LABELS, Section
from finegrain.simulate.phantom.texture import FloatArray


def draw_abdomen(s: Section) -> None:
    """All organs below the diaphragm, from the back of the painter's list to its front."""
    if s.z > 25:
        return
    c = s.canvas
    c.paint(c.coverage(common(-s.chest, s.chest - 2.2, s.cage)), s.tissue("muscle", 8), LABELS["soft tissue"])
    belly = common(s.cage + 2.5, 1.6 - s.chest)
    room = c.coverage(belly)
    c.paint(room * s.sheets(0.5, offset_mm=511) * np.float32(0.6), -20.0, LABELS["soft tissue"])
    c.paint(c.thin_tube_coverage(s.person.tubes["mesentery"]) * room, s.person.hu["portal"] * 0.9, LABELS["vessel"])
    liver = _liver_distance(s, belly)
    _draw_bowel(s, belly)
    _draw_stomach(s, belly)
    _draw_pancreas(s, belly)
    _draw_spleen(s, belly)
    for name in ("kidney right", "kidney left"):
        _draw_kidney(s, name)
    _draw_liver(s, liver)


def draw_abdominal_vessels(s: Section) -> None:
    """Portal and splenic vein; aorta and cava come with the mediastinum, for they pass both."""
    d = s.canvas.tube_distance(s.person.tubes["portal"])
    if d is not None:
        cover = s.canvas.coverage(common(d, s.cage + 4))
        s.canvas.paint(cover, s.person.hu["portal"] + 4 * s.soft, LABELS["vessel"])


def _liver_distance(s: Section, belly: FloatArray) -> FloatArray:
    c, organs = s.canvas, s.person.organs
    lobes = blend(
        c.ellipsoid(organs["liver right"]), c.ellipsoid(organs["liver left"]), c.ellipsoid(organs["caudate"]),
        radius_mm=16,
    )  # fmt: skip
    # The falciform fissure and the bed of the portal vein.
    left = organs["liver left"]
    u0, v0, turn = left.center_mm[0] - 16, left.center_mm[1] - 8, left.angle_rad
    fissure = c.ellipse(u0, v0, 1.0 + max(0.0, (-s.z - 40) / 9), 15 + max(0.0, (-s.z - 40) / 3), turn + 0.1)
    hilum = c.ellipse(-24, 2 * turn * 10 - 4, 15, 1.5 + max(0.0, (-s.z - 58) / 4), turn) if s.z < -52 else fissure
    # The medial face of the lower right lobe is hollow, where kidney, colon and duodenum lie.
    deep = float(np.clip((-s.z - 48) / 50, 0, 1.6))
    hollow = c.ellipse(-8 + 6 * deep, 40, 22 + 46 * deep, 14 + 42 * deep)
    return common(lobes + 1.5 * s.smooth, belly + 0.3, -(fissure + 1.2 * s.smooth), -hilum, -hollow)


def _draw_liver(s: Section, liver: FloatArray) -> None:
    c, hu = s.canvas, s.person.hu
    cover = c.coverage(liver)
    if not cover.any():
        return
    c.paint(cover, s.tissue("liver", 8) + 2 * s.smooth, LABELS["liver"])
    inside = c.coverage(liver + 2.5)
    for tree, blood in (("hepatic tree", "hepatic vein"), ("portal tree", "portal")):
        # Perfusion pales small branches: they never stand out as the trunks do.
        c.paint(c.thin_tube_coverage(s.person.tubes[tree]) * inside * 0.9, hu[blood] + 3 * s.soft, LABELS["vessel"])
    for lesion in s.person.lesions:
        if lesion.site == "liver":
            _draw_lesion(s, lesion, inside)
    gallbladder = common(c.ellipsoid(s.person.organs["gallbladder"]), s.cage + 8)
    c.paint(c.coverage(gallbladder - 1.2), s.tissue("bowel wall", 6), LABELS["soft tissue"])
    c.paint(c.coverage(gallbladder), s.tissue("bile", 2), LABELS["fluid"])


def _draw_lesion(s: Section, lesion: Lesion, room: FloatArray) -> None:
    c = s.canvas
    if abs(lesion.ball.center_mm[2] - s.z) < lesion.ball.semi_axes_mm[2]:
        d = c.ellipsoid(lesion.ball) + 0.5 * s.smooth
        ramp = np.clip(0.5 - d / np.float32(c.pixel_mm + lesion.edge_mm), 0, 1)
        c.paint(ramp * room, lesion.hu + 6 * s.soft, LABELS["lesion"])


def _draw_spleen(s: Section, belly: FloatArray) -> None:
    c, organs = s.canvas, s.person.organs
    spleen = common(c.ellipsoid(organs["spleen"]), -c.ellipsoid(organs["spleen hilum"]), belly + 1.5) + 1.0 * s.smooth
    moire = 14 * s.smooth if s.person.phase == "arterial" else 0
    c.paint(c.coverage(spleen), s.tissue("spleen", 7) + moire, LABELS["spleen"])


def _draw_kidney(s: Section, name: str) -> None:
    c, hu, kidney = s.canvas, s.person.hu, s.person.organs[name]
    d = common(c.ellipsoid(kidney), s.cage + 7) + 0.7 * s.smooth
    if d.min() > 0:
        return
    side = np.sign(kidney.center_mm[0])
    c.paint(c.coverage(d - 10) * s.sheets(0.5, offset_mm=17), -20.0, LABELS["soft tissue"])
    c.paint(c.coverage(d), s.tissue("cortex", 7), LABELS["kidney"])
    columns = np.clip(1.4 * np.abs(s.person.smooth.sample(c.u, c.v, s.z, offset_mm=131)), 0, 1)
    pyramids = np.clip(-(d + 5.5) / 1.5, 0, 1) * columns
    c.paint(pyramids, s.tissue("medulla", 6), LABELS["kidney"])
    # The sinus opens to the front and the middle; fat with the pelvis and vessels in it.
    u0, v0, z0 = kidney.center_mm
    rest = 1 - ((s.z - z0) / (0.58 * kidney.semi_axes_mm[2])) ** 2
    if rest > 0.02:
        k = float(np.sqrt(rest))
        sinus = c.ellipse(u0 - side * 10, v0 - 6, 15 * k, 9 * k, side * 0.45) + 1.8 * s.smooth
        c.paint(c.coverage(sinus), s.tissue("fat", 8) + 15, LABELS["fat"])
        pelvis = c.ellipse(u0 - side * 9, v0 - 5, 10 * k, 3.4 * k, side * 0.6) + 1.5 * s.smooth
        c.paint(c.coverage(common(pelvis, sinus + 1)), 10 + 4 * s.soft, LABELS["fluid"])
        branch = np.abs(s.person.smooth.sample(c.u, c.v, s.z, offset_mm=711)) - 0.16
        c.paint(
            c.coverage(common(branch * 5, sinus + 1.5, -(pelvis - 1))), hu["vein"] + 3 * s.soft, LABELS["vessel"]
        )  # fmt: skip
    for lesion in s.person.lesions:
        if lesion.site == "kidney" and np.sign(lesion.ball.center_mm[0]) == side:
            _draw_lesion(s, lesion, c.coverage(d - 3))


def _draw_pancreas(s: Section, belly: FloatArray) -> None:
    c = s.canvas
    d = c.tube_distance(s.person.tubes["pancreas"])
    if d is None:
        return
    lobules = s.person.smooth.sample(c.u * 2.2, c.v * 2.2, 2.2 * s.z, offset_mm=91)
    cover = c.coverage(common(d + 2.2 * lobules, belly + 3))
    c.paint(cover, s.tissue("pancreas", 9), LABELS["pancreas"])
    c.paint(cover * np.clip(lobules - 0.7, 0, 0.7), s.person.hu["fat"] + 20, LABELS["fat"])


def _hollow(s: Section, d: FloatArray, *, wall_mm: float, content: FloatArray | float, gas_below_v: float) -> None:
    """Wall, content and, where the lumen lies in front of a level, gas: it rises to the front in a supine patient."""
    c = s.canvas
    c.paint(c.coverage(d), s.tissue("bowel wall", 8), LABELS["bowel"])
    lumen = d + np.float32(wall_mm)
    c.paint(c.coverage(lumen), content + 6 * s.soft, LABELS["bowel"])
    level = np.broadcast_to((c.axis_mm - gas_below_v).astype(np.float32)[:, None], d.shape)
    c.paint(c.coverage(common(lumen, level)), s.person.hu["gas"], LABELS["bowel gas"])


def _draw_stomach(s: Section, belly: FloatArray) -> None:
    c, organs = s.canvas, s.person.organs
    names = ("stomach fundus", "stomach body", "stomach antrum")
    d = common(blend(*(c.ellipsoid(organs[n]) for n in names), radius_mm=14), belly + 2.5)
    folds = 2.2 * s.person.smooth.sample(c.u * 2, c.v * 2, 2 * s.z, offset_mm=251)
    if d.min() < 0:
        _hollow(s, d, wall_mm=4.5, content=22 + 8 * s.smooth, gas_below_v=-44.0)
        c.paint(c.coverage(common(d, -(d + 5 + np.maximum(folds, 0)))), s.tissue("bowel wall", 8), LABELS["bowel"])


def _draw_bowel(s: Section, belly: FloatArray) -> None:
    c = s.canvas
    room = belly + 2.5
    folds = 1.1 * s.person.smooth.sample(c.u * 2, c.v * 2, 2 * s.z, offset_mm=15.0)
    for i, (loop, content) in enumerate(s.person.small_bowel):
        d = c.tube_distance(loop)
        if d is not None:
            d = common(d + folds, room)
            cover = c.coverage(d)
            if cover.any():
                top = float(c.axis_mm[np.nonzero(cover.any(axis=1))[0][0]])
                _hollow(s, d, wall_mm=2.2, content=content, gas_below_v=top + (4.0 if i % 5 == 0 else -9.0))
    gut = c.tube_distance(s.person.tubes["duodenum"])
    if gut is not None:
        _hollow(s, common(gut + 0.8 * s.smooth, room), wall_mm=2.5, content=20.0, gas_below_v=-999.0)
    colon = c.tube_distance(s.person.tubes["colon"])
    if colon is None:
        return
    d = common(colon + 2.2 * s.person.smooth.sample(c.u, c.v, s.z, offset_mm=633), room)
    mottle = s.person.soft.sample(c.u, c.v, s.z, offset_mm=871)
    bubbles = np.clip(2.5 * (mottle - 0.75), 0, 1)
    stool = 30 + 15 * mottle - np.where(c.u < 0, 700, 250) * bubbles
    _hollow(s, d, wall_mm=2.2, content=stool.astype(np.float32), gas_below_v=-58.0)
