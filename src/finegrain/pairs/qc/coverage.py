"""How much body there is, and how much of it is cut or missing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.pairs.qc.view import BODY_HU, NOT_AIR_HU, View, cell_means, pixels_of, thick_parts


def measure_coverage(view: View) -> dict[str, float]:
    """How much body there is, how much of it is cut, and how much one of both images lacks."""
    body_cm2 = float(np.count_nonzero(view.body)) * view.pixel_mm**2 / 100
    if not view.body.any():
        return {"body_cm2": 0.0, "cut_body": math.nan, "cut_straight": math.nan, "uncovered": math.nan}
    end = _grown(~view.valid | _constant(view), 2)  # the first pixel beyond what is constant
    end[[0, -1], :] = end[:, [0, -1]] = True
    tissue = thick_parts(cell_means(view.normal, view.cell) > NOT_AIR_HU, view.cell * view.pixel_mm)  # a cut opens the lungs
    outline = int(np.count_nonzero(tissue & ~ndimage.binary_erosion(tissue))) * view.cell
    cut = end & pixels_of(ndimage.binary_dilation(tissue), view.cell, view.normal.shape) & (view.normal > NOT_AIR_HU)
    straight = max(int(cut[1:-1, 1:-1].sum(axis=axis).max()) for axis in (0, 1))
    missing = (view.normal > BODY_HU) & (view.low < -900)
    missing |= (view.low > BODY_HU) & (view.normal < -900)
    core = pixels_of(ndimage.binary_erosion(view.cell_body, iterations=2), view.cell, view.normal.shape)
    return {
        "body_cm2": body_cm2,
        "cut_body": min(int(np.count_nonzero(cut)) / outline, 1.0),
        "cut_straight": min(straight / outline, 1.0),
        "uncovered": int(np.count_nonzero(missing & core)) / max(int(np.count_nonzero(core)), 1),
    }


def _constant(view: View) -> NDArray[np.bool_]:
    """Pixels amid nine that are equal in both images: nothing was measured there, or it was cut off at the end of the scale."""
    low, normal = view.low, view.normal
    across = (normal[:, 1:] == normal[:, :-1]) & (low[:, 1:] == low[:, :-1])
    along = (normal[1:] == normal[:-1]) & (low[1:] == low[:-1])
    three = across[:, 1:] & across[:, :-1]
    middle = three[:-2] & three[1:-1] & three[2:] & along[1:, 1:-1] & along[:-1, 1:-1]
    return np.pad(middle, 1)


def _grown(pixels: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Dilated by a square, without the wait that `ndimage` takes."""
    wide = pixels.copy()
    for k in range(1, by + 1):
        wide[:, k:] |= pixels[:, :-k]
        wide[:, :-k] |= pixels[:, k:]
    high = wide.copy()
    for k in range(1, by + 1):
        high[k:] |= wide[:-k]
        high[:-k] |= wide[k:]
    return high
