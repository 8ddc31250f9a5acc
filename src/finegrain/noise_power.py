"""Noise power spectra of square regions: two-dimensional and radial; one definition for the simulator and the measures."""

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


def nps_2d(rois_hu: NDArray, *, pixel_mm: float, detrend: Detrend = "mean") -> NPS2D:
    """Noise power spectrum of an ensemble of square ROIs; its integral over both frequencies is the variance.

    Each ROI loses its mean, or the plane or quadratic surface that fits it best, with that share of its low-frequency
    noise. For the difference of two images of equal, independent noise, give difference/√2.

    Shape: rois_hu (n, y, x) with y = x. Raises: DataError as `periodograms` does.
    Source: ICRU 87 (2012), |FFT|² · pixel² / pixels, ensemble mean.
    """
    return mean_nps(periodograms(rois_hu, pixel_mm=pixel_mm, detrend=detrend), pixel_mm=pixel_mm)


def periodograms(
    rois_hu: NDArray, *, pixel_mm: float, detrend: Detrend = "mean", taper: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """The power of each ROI by itself, HU²·mm², zero frequency first (as `numpy.fft.fft2`).

    Args:
        taper: what each detrended ROI is multiplied by, scaled here to mean square 1. A Hann taper keeps the power of strong
            frequencies from leaking into weak ones, at the price of a lower resolution.

    Shape: rois_hu (n, y, x) with y = x, taper (y, x) → (n, y, x).
    Raises: DataError if there is no ROI, it is not square, holds NaN, or its pixels have no size.
    """
    if rois_hu.ndim != 3 or rois_hu.shape[1] != rois_hu.shape[2] or len(rois_hu) == 0 or rois_hu.shape[1] < 2:
        raise DataError(f"expected one or more square ROIs of shape (n, y, x), got {rois_hu.shape}")
    if not 0 < pixel_mm < np.inf:
        raise DataError(f"expected a positive pixel size, got {pixel_mm} mm")
    if not np.isfinite(rois_hu).all():
        bad = np.count_nonzero(~np.isfinite(rois_hu))
        raise DataError(f"{bad} pixels of the ROIs are NaN or infinite; a spectrum needs finite HU")
    residual = _detrended(np.asarray(rois_hu, dtype=np.float64), detrend)
    if taper is not None:
        residual *= taper / np.sqrt(np.mean(np.square(taper)))
    return np.abs(np.fft.fft2(residual)) ** 2 * (pixel_mm / rois_hu.shape[-1]) ** 2


def mean_nps(power: NDArray[np.float64], *, pixel_mm: float) -> NPS2D:
    """The spectrum of an ensemble from the `periodograms` of its ROIs. Shape: power (n, y, x)."""
    size = power.shape[-1]
    mean = power.mean(axis=0)
    return NPS2D(
        power=np.fft.fftshift(mean),
        frequency_per_mm=np.fft.fftshift(np.fft.fftfreq(size, pixel_mm)),
        variance=float(mean.sum() / (size * pixel_mm) ** 2),
        n_rois=len(power),
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
    return radial_curve(mean_of_ring, power, variance=float(nps.power.sum() * step**2))


def radial_curve(frequency_per_mm: NDArray[np.float64], power: NDArray[np.float64], *, variance: float) -> RadialNPS:
    """A radial spectrum, with its mean and peak frequency, of a curve that was measured. Shape: (ring,) both."""
    total = float(power.sum())
    return RadialNPS(
        frequency_per_mm=frequency_per_mm,
        power=power,
        mean_frequency=float((frequency_per_mm * power).sum()) / total if total > 0 else float("nan"),
        peak_frequency=_peak(frequency_per_mm, power) if total > 0 else float("nan"),
        variance=variance,
    )


def ring_powers(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """The radial spectrum of each ROI by itself, from its `periodograms`; the mean over the ROIs is that of `radial_nps`.

    Shape: power (n, y, x), zero frequency first → (n, ring).
    """
    size = power.shape[-1]
    k = np.fft.fftfreq(size, 1 / size)
    ring = np.round(np.hypot(k[:, None], k[None, :])).astype(np.int64).ravel()
    membership = (ring[:, None] == np.arange(1, size // 2 + 1)).astype(np.float64)
    return power.reshape(len(power), -1) @ (membership / membership.sum(axis=0))


def _peak(frequency: NDArray, power: NDArray) -> float:
    """Abscissa of the parabola through the highest point and its neighbours; the point itself at either end."""
    top = int(np.argmax(power))
    if top in (0, len(power) - 1):
        return float(frequency[top])
    a, b, _ = np.polyfit(frequency[top - 1 : top + 2] - frequency[top], power[top - 1 : top + 2], 2)
    return float(frequency[top] - b / (2 * a)) if a < 0 else float(frequency[top])
