"""Noise power spectra compared: where they are measured, their distances and the ratios that CT physicists quote.

A spectrum of patient images in uniform regions holds noise and whatever fine structure is there; of a difference of two
images of the same patient it holds noise alone. The spectra themselves are in `noise_power`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.noise_power import RadialNPS


def uniform_patches(hu: NDArray, mask: NDArray[np.bool_], size: int, *, min_coverage: float = 0.95) -> NDArray[np.float64]:
    """Square patches that do not overlap and lie mostly in a mask, found row by row; deterministic.

    Shape: hu, mask (y, x) → (n, size, size); n may be 0.
    """
    if hu.shape != mask.shape:
        raise DataError(f"the mask of shape {mask.shape} does not fit the image of {hu.shape}")
    found = []
    free = mask.astype(np.float64)
    for row in range(0, hu.shape[0] - size + 1, max(size // 4, 1)):
        for column in range(0, hu.shape[1] - size + 1, max(size // 4, 1)):
            square = np.s_[row : row + size, column : column + size]
            # A taken patch is marked far below zero, so that no sum over a single taken pixel can pass.
            if free[square].sum() >= min_coverage * size**2:
                found.append(np.asarray(hu[square], dtype=np.float64))
                free[square] = -float(size**2)
    return np.stack(found) if found else np.empty((0, size, size))


def nps_log_distance(a: RadialNPS, b: RadialNPS, *, low: float = 0.05, high: float = 0.55) -> float:
    """Mean |ln(a/b)| over the frequencies of `a` within [low, high] cycles/mm that `b` holds too: noise level and shape.

    Spectra of other pixel or ROI sizes are interpolated. A spectrum that is zero anywhere there gives infinity.
    The default interval is ours. Raises: DataError if the two share no frequency in it.
    """
    power_a, power_b = _shared(a, b, low, high)
    return _log_distance(power_a, power_b)


def nps_shape_log_distance(a: RadialNPS, b: RadialNPS, *, low: float = 0.05, high: float = 0.55) -> float:
    """As `nps_log_distance` after either spectrum was scaled to unit area in the interval: shape alone, no level."""
    power_a, power_b = _shared(a, b, low, high)
    return _log_distance(power_a / max(power_a.mean(), 1e-300), power_b / max(power_b.mean(), 1e-300))


def _shared(a: RadialNPS, b: RadialNPS, low: float, high: float) -> tuple[NDArray, NDArray]:
    f = a.frequency_per_mm
    here = (f >= max(low, b.frequency_per_mm[0] - 1e-9)) & (f <= min(high, b.frequency_per_mm[-1] + 1e-9))
    if not here.any():
        raise DataError(f"the two spectra share no frequency in [{low}, {high}] cycles/mm; use larger ROIs or another interval")
    return a.power[here], np.interp(f[here], b.frequency_per_mm, b.power)


def _log_distance(a: NDArray, b: NDArray) -> float:
    if (a <= 0).any() or (b <= 0).any():
        return float("inf")
    return float(np.abs(np.log(a / b)).mean())


def noise_magnitude_ratio(nps: RadialNPS, fbp: RadialNPS) -> float:
    """NMR: √ of the ratio of the areas under two spectra, the second that of filtered backprojection; 1 keeps all noise."""
    return float(np.sqrt(nps.variance / fbp.variance)) if fbp.variance > 0 else float("nan")


def central_frequency_ratio(nps: RadialNPS, fbp: RadialNPS) -> float:
    """CFR: ratio of the peak frequencies of two spectra; below 1 the noise has become blotchy."""
    return nps.peak_frequency / fbp.peak_frequency if fbp.peak_frequency > 0 else float("nan")
