"""What lies below the diaphragm: liver, spleen, kidneys, pancreas, bowel and their vessels."""

from __future__ import annotations

import numpy as np

from finegrain.simulate.phantom.drawing import blend, common, ellipse_distance
from finegrain.simulate.phantom.section import LABELS, Trunk, hollow
from finegrain.simulate.phantom.texture import FloatArray


def draw_abdomen(s: Trunk) -> None:
    """All organs below the diaphragm, from the back of the painter's list to its front."""
    if s.z > 25:
        return
    c = s.canvas
    c.paint(c.coverage(common(-s.chest, s.chest - 2.2, s.cage)), s.tissue("muscle"), LABELS["soft tissue"])
    belly = common(s.cage + 1.8, 1.6 - s.chest)
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


def draw_abdominal_vessels(s: Trunk) -> None:
    """Portal and splenic vein; aorta and cava come with the mediastinum, for they pass both."""
    d = s.canvas.tube_distance(s.person.tubes["portal"])
    if d is not None:
        cover = s.canvas.coverage(common(d, s.cage + 4))
        s.canvas.paint(cover, s.person.hu["portal"] + 4 * s.soft, LABELS["vessel"])


def _liver_distance(s: Trunk, belly: FloatArray) -> FloatArray:
    c, organs = s.canvas, s.person.organs
    lobes = blend(
        c.ellipsoid(organs["liver right"]), c.ellipsoid(organs["liver left"]), c.ellipsoid(organs["caudate"]),
        radius_mm=16,
    )  # fmt: skip
    # The falciform fissure and the bed of the portal vein.
    left = organs["liver left"]
    u0, v0, turn = left.center_mm[0] - 16, left.center_mm[1] - 8, left.angle_rad
    thick = 0.3 + 0.7 * s.person.fat + max(0.0, (-s.z - 40) / 9)
    fissure = c.ellipse(u0, v0, thick, 9 + 5 * s.person.fat + max(0.0, (-s.z - 40) / 3), 2.5 * turn + 0.1) + 2.0 * s.smooth
    hilum = c.ellipse(-24, 2 * turn * 10 - 4, 15, 1.5 + max(0.0, (-s.z - 58) / 4), turn) + 1.5 * s.smooth if s.z < -52 else fissure
    # The medial face of the lower right lobe is hollow, where kidney, colon and duodenum lie.
    deep = float(np.clip((-s.z - 48) / 50, 0, 1.6))
    hollow = c.ellipse(-8 + 6 * deep, 40, 22 + 46 * deep, 14 + 42 * deep)
    # A slow wave of a few mm makes one liver plump and the next one lean.
    shape = lobes + 1.5 * s.smooth + 4.5 * s.person.outline.on_grid(c.axis_mm, c.axis_mm, s.z)
    return common(shape, belly - 0.6, -fissure, -hilum, -hollow)


def _draw_liver(s: Trunk, liver: FloatArray) -> None:
    c, hu = s.canvas, s.person.hu
    cover = c.coverage(liver)
    if not cover.any():
        return
    c.paint(cover, s.tissue("liver") + 0.5 * s.smooth, LABELS["liver"])
    inside = c.coverage(liver + 2.5)
    for tree, blood in (("hepatic tree", "hepatic vein"), ("portal tree", "portal")):
        # Perfusion pales small branches: they never stand out as the trunks do.
        c.paint(c.thin_tube_coverage(s.person.tubes[tree]) * inside * 0.45, hu[blood] + 3 * s.soft, LABELS["vessel"])
    for lesion in s.person.lesions:
        if lesion.site == "liver":
            s.lesion(lesion, inside)
    gallbladder = common(c.ellipsoid(s.person.organs["gallbladder"]), s.cage + 8)
    c.paint(c.coverage(gallbladder - 1.2), s.tissue("bowel wall"), LABELS["soft tissue"])
    c.paint(c.coverage(gallbladder), s.tissue("bile"), LABELS["fluid"])


def _draw_spleen(s: Trunk, belly: FloatArray) -> None:
    c, organs = s.canvas, s.person.organs
    spleen = common(c.ellipsoid(organs["spleen"]), -c.ellipsoid(organs["spleen hilum"]), belly + 1.5) + 1.0 * s.smooth
    moire = 14 * s.smooth if s.person.phase == "arterial" else 0
    c.paint(c.coverage(spleen), s.tissue("spleen") + moire, LABELS["spleen"])


def _draw_kidney(s: Trunk, name: str) -> None:
    c, hu, kidney = s.canvas, s.person.hu, s.person.organs[name]
    found = s.ball(kidney, grow_mm=10.0, wobble_mm=0.7)
    if found is None:
        return
    w, fat = found
    u, v = c.u[w], c.v[w]
    c.paint(c.coverage(common(fat, s.cage[w] + 7)) * s.sheets(0.5, offset_mm=17, window=w), -20.0, LABELS["soft tissue"], w)
    whole = c.ellipsoid(kidney)[w]
    d = common(whole, s.cage[w] + 7) + 0.7 * s.smooth[w]
    if d.min() > 0:
        return
    side = np.sign(kidney.center_mm[0])
    c.paint(c.coverage(d), s.tissue("cortex")[w], LABELS["kidney"], w)
    columns = np.clip(1.4 * np.abs(s.person.smooth.sample(u, v, s.z, offset_mm=131)), 0, 1)
    pyramids = np.clip(-(d + 5.5) / 1.5, 0, 1) * columns
    c.paint(pyramids, s.tissue("medulla")[w], LABELS["kidney"], w)
    # The sinus opens to the front and the middle; fat with the pelvis and vessels in it.
    u0, v0, z0 = kidney.center_mm
    rest = 1 - ((s.z - z0) / (0.58 * kidney.semi_axes_mm[2])) ** 2
    if rest > 0.02:
        k = float(np.sqrt(rest))
        smooth, soft = s.smooth[w], s.soft[w]
        sinus = ellipse_distance(u, v, u0 - side * 10, v0 - 6, 15 * k, 9 * k, side * 0.45) + 1.8 * smooth
        c.paint(c.coverage(sinus), s.tissue("fat")[w] + 15, LABELS["fat"], w)
        pelvis = ellipse_distance(u, v, u0 - side * 9, v0 - 5, 10 * k, 3.4 * k, side * 0.6) + 1.5 * smooth
        c.paint(c.coverage(common(pelvis, sinus + 1)), 10 + 4 * soft, LABELS["fluid"], w)
        branch = np.abs(s.person.smooth.sample(u, v, s.z, offset_mm=711)) - 0.16
        veins = common(branch * 5, sinus + 1.5, -(pelvis - 1))
        c.paint(c.coverage(veins), hu["vein"] + 3 * soft, LABELS["vessel"], w)
    for lesion in s.person.lesions:
        if lesion.site == "kidney" and np.sign(lesion.ball.center_mm[0]) == side:
            room = np.zeros_like(c.u)
            room[w] = c.coverage(d - 3)
            s.lesion(lesion, room)


def _draw_pancreas(s: Trunk, belly: FloatArray) -> None:
    c = s.canvas
    d = c.tube_distance(s.person.tubes["pancreas"])
    if d is None:
        return
    lobules = s.person.smooth.sample(c.u * 2.2, c.v * 2.2, 2.2 * s.z, offset_mm=91)
    cover = c.coverage(common(d + 2.2 * lobules, belly + 3))
    c.paint(cover, s.tissue("pancreas"), LABELS["pancreas"])
    c.paint(cover * np.clip(lobules - 0.7, 0, 0.7), s.person.hu["fat"] + 20, LABELS["fat"])


def _draw_stomach(s: Trunk, belly: FloatArray) -> None:
    c, organs = s.canvas, s.person.organs
    names = ("stomach fundus", "stomach body", "stomach antrum")
    d = common(blend(*(c.ellipsoid(organs[n]) for n in names), radius_mm=14), belly + 2.5)
    if d.min() < 0:
        folds = 2.2 * s.person.smooth.sample(c.u * 2, c.v * 2, 2 * s.z, offset_mm=251)
        hollow(s, d, wall_mm=4.5, content=22 + 8 * s.smooth, gas_below_v=-44.0)
        c.paint(c.coverage(common(d, -(d + 5 + np.maximum(folds, 0)))), s.tissue("bowel wall"), LABELS["bowel"])


def _draw_bowel(s: Trunk, belly: FloatArray) -> None:
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
                hollow(s, d, wall_mm=2.2, content=content, gas_below_v=top + (4.0 if i % 5 == 0 else -9.0))
    gut = c.tube_distance(s.person.tubes["duodenum"])
    if gut is not None:
        hollow(s, common(gut + 0.8 * s.smooth, room), wall_mm=2.5, content=20.0, gas_below_v=-999.0)
    colon = c.tube_distance(s.person.tubes["colon"])
    if colon is None:
        return
    d = common(colon + 2.2 * s.person.smooth.sample(c.u, c.v, s.z, offset_mm=633), room)
    mottle = s.person.soft.sample(c.u, c.v, s.z, offset_mm=871)
    bubbles = np.clip(2.5 * (mottle - 0.75), 0, 1)
    stool = 30 + 15 * mottle - np.where(c.u < 0, 700, 250) * bubbles
    hollow(s, d, wall_mm=2.2, content=stool.astype(np.float32), gas_below_v=-58.0)
