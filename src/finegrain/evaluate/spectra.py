"""Noise power: two-dimensional and radial spectra, their distances and the ratios that CT physicists quote.

A spectrum of patient images in uniform regions holds noise and whatever fine structure is there; of a difference of two
images of the same patient it holds noise alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError

Detrend = Literal["mean", "linear", "quadratic"]


@dataclass(frozen=True)
class NPS2D:
    """A two-dimensional noise power spectrum.

    Attributes:
        power: HU²·mm², shape (y, x), zero frequency in the middle (as `numpy.fft.fftshift`).
        frequency_per_mm: cycles/mm along either axis, ascending, shape (y,).
        variance: mean variance of the detrended ROIs in HU²; the integral of `power`.
        n_rois: how many ROIs were averaged.
    """

    power: NDArray[np.float64]
    frequency_per_mm: NDArray[np.float64]
    variance: float
    n_rois: int


@dataclass(frozen=True)
class RadialNPS:
    """A noise power spectrum averaged over rings, up to Nyquist.

    Attributes:
        frequency_per_mm: mean frequency of each ring, cycles/mm, ascending, without the constant.
        power: mean power of each ring, HU²·mm².
        mean_frequency: ∫ f·NPS df / ∫ NPS df of the radial curve, cycles/mm (AAPM TG-233).
        peak_frequency: where the radial curve is highest, by a parabola through its top three points, cycles/mm.
        variance: integral of the two-dimensional spectrum, corners included, HU².
    """

    frequency_per_mm: NDArray[np.float64]
    power: NDArray[np.float64]
    mean_frequency: float
    peak_frequency: float
    variance: float


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


def nps_2d(rois_hu: NDArray, *, pixel_mm: float, detrend: Detrend = "mean") -> NPS2D:
    """Noise power spectrum of an ensemble of square ROIs; its integral over both frequencies is the variance.

    Each ROI loses its mean, or the plane or quadratic surface that fits it best, with that share of its low-frequency
    noise. For the difference of two images of equal, independent noise, give difference/√2.

    Shape: rois_hu (n, y, x) with y = x. Raises: DataError if there is no ROI or it is not square.
    Source: ICRU 87 (2012), |FFT|² · pixel² / pixels, ensemble mean.
    """
    if rois_hu.ndim != 3 or rois_hu.shape[1] != rois_hu.shape[2] or len(rois_hu) == 0:
        raise DataError(f"expected one or more square ROIs of shape (n, y, x), got {rois_hu.shape}")
    size = rois_hu.shape[-1]
    residual = _detrended(np.asarray(rois_hu, dtype=np.float64), detrend)
    power = (np.abs(np.fft.fft2(residual)) ** 2).mean(axis=0) * (pixel_mm / size) ** 2
    return NPS2D(
        power=np.fft.fftshift(power),
        frequency_per_mm=np.fft.fftshift(np.fft.fftfreq(size, pixel_mm)),
        variance=float((residual**2).mean()),
        n_rois=len(rois_hu),
    )


def _detrended(rois: NDArray[np.float64], detrend: Detrend) -> NDArray[np.float64]:
    order = {"mean": 0, "linear": 1, "quadratic": 2}[detrend]
    y, x = np.meshgrid(np.linspace(-1, 1, rois.shape[1]), np.linspace(-1, 1, rois.shape[2]), indexing="ij")
    terms = np.stack([(x**i * y**j).ravel() for i in range(order + 1) for j in range(order + 1 - i)], axis=1)
    basis, _ = np.linalg.qr(terms)
    flat = rois.reshape(len(rois), -1)
    return (flat - (flat @ basis) @ basis.T).reshape(rois.shape)


def radial_nps(nps: NPS2D) -> RadialNPS:
    """A two-dimensional spectrum averaged over rings one frequency step wide, up to Nyquist, without the constant."""
    frequency = np.hypot(nps.frequency_per_mm[:, None], nps.frequency_per_mm[None, :])
    step = nps.frequency_per_mm[1] - nps.frequency_per_mm[0]
    ring = np.round(frequency / step).astype(np.int64)
    n_rings = len(nps.frequency_per_mm) // 2 + 1
    inside = (ring > 0) & (ring < n_rings)
    members = np.bincount(ring[inside], minlength=n_rings)[1:]
    power = np.bincount(ring[inside], nps.power[inside], n_rings)[1:] / members
    mean_of_ring = np.bincount(ring[inside], frequency[inside], n_rings)[1:] / members
    total = float(power.sum())
    return RadialNPS(
        frequency_per_mm=mean_of_ring,
        power=power,
        mean_frequency=float((mean_of_ring * power).sum()) / total if total > 0 else float("nan"),
        peak_frequency=_peak(mean_of_ring, power) if total > 0 else float("nan"),
        variance=float(nps.power.sum() * step**2),
    )


def _peak(frequency: NDArray, power: NDArray) -> float:
    """Abscissa of the parabola through the highest point and its neighbours; the point itself at either end."""
    top = int(np.argmax(power))
    if top in (0, len(power) - 1):
        return float(frequency[top])
    a, b, _ = np.polyfit(frequency[top - 1 : top + 2] - frequency[top], power[top - 1 : top + 2], 2)
    return float(frequency[top] - b / (2 * a)) if a < 0 else float(frequency[top])


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
