"""One pair → every number of it; knows no limits."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from finegrain.pairs.qc.alignment import measure_alignment
from finegrain.pairs.qc.artefacts import measure_artefacts
from finegrain.pairs.qc.coverage import measure_coverage
from finegrain.pairs.qc.noise import measure_noise, measure_sharpness
from finegrain.pairs.qc.quality import PairQuality
from finegrain.pairs.qc.view import FloatImage, View, cell_means


def measure_pair(
    low_dose: NDArray,
    normal_dose: NDArray,
    *,
    pixel_mm: float,
    noise: Literal["inserted", "independent"] | None = None,
    padding: NDArray[np.bool_] | None = None,
) -> PairQuality:
    """Every number of one pair.

    Args:
        noise: whether the low dose holds the noise of the normal dose (inserted) or has its own; where it is None, the images
            tell it, or no dose is told.
        padding: where nothing was reconstructed; what is NaN or below −1500 HU is such in any case.

    Shape: (y, x) in HU.
    Raises: DataError if the images differ in shape, are not two-dimensional, or smaller than 64 pixels.
    """
    view = View.make(low_dose, normal_dose, pixel_mm=pixel_mm, padding=padding)
    found: dict[str, Any] = _hu(view) | measure_alignment(view) | measure_noise(view, noise) | measure_sharpness(view)
    return PairQuality(**found | measure_artefacts(view) | measure_coverage(view))


DARKEST_AIR = 0.1
"""Quantile of the cells around the body that is air: clothes and the foam of a couch, of −940 HU, lie around it as well."""


def _median(values: NDArray) -> float:
    return float(np.median(values)) if values.size else math.nan


def _hu(view: View) -> dict[str, float]:
    """Peaks of N and what of them is shifted in L."""
    normal, difference = cell_means(view.normal, view.cell), cell_means(view.difference, view.cell)
    far = ~ndimage.binary_dilation(view.cell_body, iterations=3)
    seen = cell_means(view.valid & _circle(view.normal.shape), view.cell) == 1
    dark = far & seen & (normal < -800)
    around = dark if np.count_nonzero(dark) >= 100 else seen  # where there is no air, the darkest is told
    air_hu = float(np.quantile(normal[around], DARKEST_AIR)) if around.any() else math.nan
    air = dark & (np.abs(normal - air_hu) < 15)  # false for NaN
    inside = ndimage.binary_erosion(view.cell_body, iterations=2)
    body = normal[inside]
    fat_hu, soft_hu = _peak(body, -180, -30), _peak(body, -30, 200)
    soft = inside & (np.abs(normal - soft_hu) < 30)  # false for NaN
    fat = inside & (np.abs(normal - fat_hu) < 20)
    return {
        "air_hu": air_hu,
        "bias_air_hu": _median(difference[air]),
        "fat_hu": fat_hu,
        "soft_hu": soft_hu,
        "bias_hu": _median(difference[soft]),
        "bias_fat_hu": _median(difference[fat]),
    }


def _peak(values: FloatImage, low: float, high: float) -> float:
    """The highest peak of a histogram of cells between two CT numbers, HU; NaN if fewer than 2 % of the cells make it."""
    step = 2.0
    counts, at = np.histogram(values, bins=np.arange(-250, 301, step))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), 3.0)
    peaks, _ = signal.find_peaks(smooth)
    middle = at[:-1] + step / 2
    peaks = peaks[(middle[peaks] >= low) & (middle[peaks] <= high)]
    if len(peaks) == 0:
        return math.nan
    top = peaks[np.argmax(smooth[peaks])]
    near = np.abs(middle - middle[top]) <= 15
    if counts[near].sum() < max(20, 0.02 * values.size):
        return math.nan
    return float(np.average(middle[near], weights=smooth[near] ** 2))


@cache
def _circle(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The inscribed circle, where every scanner reconstructs."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    radius = min(shape) / 2 - 2
    return np.asarray((y - (shape[0] - 1) / 2) ** 2 + (x - (shape[1] - 1) / 2) ** 2 <= radius**2)
