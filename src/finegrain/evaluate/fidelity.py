"""Fidelity: PSNR and SSIM under a named protocol, errors in HU, and bias per tissue.

There is no default protocol: one and the same pair of images scores tens of decibels apart under those in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from finegrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class Protocol:
    """A HU interval to which both images are clipped; its width is the data range of PSNR and SSIM."""

    name: str
    low_hu: float
    high_hu: float
    description: str

    @property
    def width_hu(self) -> float:
        """Data range of PSNR and SSIM in HU."""
        return self.high_hu - self.low_hu

    def clip(self, hu: NDArray) -> NDArray[np.float64]:
        """HU clipped to the interval, in float64: float32 sums are good to 1e-4 only."""
        return np.clip(np.asarray(hu, dtype=np.float64), self.low_hu, self.high_hu)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("abdomen-40/400", -160, 240, "display window, centre 40, width 400 HU; usual for the Mayo abdomen pairs"),
        Protocol("chest--600/1500", -1350, 150, "lung display window, centre −600, width 1500 HU"),
        Protocol("mediastinum-50/350", -125, 225, "mediastinal display window, centre 50, width 350 HU"),
        Protocol("full-range", -1024, 3071, "the 12-bit CT scale, width 4095 HU"),
    )
}
"""Every protocol by its name, centre/width in HU; the name travels with each result."""


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. Raises: ConfigError that lists those there are."""
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _check(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray | None) -> None:
    if reference_hu.shape != candidate_hu.shape:
        raise DataError(f"reference of shape {reference_hu.shape} and candidate of {candidate_hu.shape} must agree")
    if roi is not None and roi.shape != reference_hu.shape:
        raise DataError(f"the roi of shape {roi.shape} does not fit images of {reference_hu.shape}")


def _difference(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray | None) -> NDArray[np.float64]:
    _check(reference_hu, candidate_hu, roi)
    difference = np.asarray(candidate_hu, dtype=np.float64) - reference_hu
    return difference.ravel() if roi is None else difference[roi]


def _mean(values: NDArray) -> float:
    """Mean, NaN if there is nothing to average (NumPy would warn)."""
    return float(values.mean()) if values.size else float("nan")


def psnr(reference_hu: NDArray, candidate_hu: NDArray, *, protocol: Protocol, roi: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB under a protocol, in the roi (None: every pixel).

    10·log10(width² / MSE) after clipping both images to the protocol's interval. Infinite for equal images, NaN for an
    empty roi. Shape: (y, x) or any other, the same for all.
    """
    mse = _mean(_difference(protocol.clip(reference_hu), protocol.clip(candidate_hu), roi) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(protocol.width_hu**2 / mse))


def ssim_map(reference_hu: NDArray, candidate_hu: NDArray, *, protocol: Protocol) -> tuple[float, NDArray[np.float64]]:
    """Mean structural similarity without the border that windows overhang, and its map. Shape: (y, x) → (y, x).

    Source: Wang et al. (2004): Gaussian weights of σ = 1.5 pixels, population covariance, K₁ = 0.01, K₂ = 0.03.
    """
    _check(reference_hu, candidate_hu, None)
    mean, full = structural_similarity(
        protocol.clip(reference_hu),
        protocol.clip(candidate_hu),
        data_range=protocol.width_hu,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(mean), full


def ssim(reference_hu: NDArray, candidate_hu: NDArray, *, protocol: Protocol, roi: NDArray[np.bool_] | None = None) -> float:
    """Structural similarity under a protocol: the mean of its map in the roi (None: all but the border of 5 pixels)."""
    _check(reference_hu, candidate_hu, roi)
    mean, full = ssim_map(reference_hu, candidate_hu, protocol=protocol)
    return mean if roi is None else _mean(full[roi])


def rmse_hu(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_] | None = None) -> float:
    """Root mean square error in HU, unclipped, in the roi (None: every pixel)."""
    return float(np.sqrt(_mean(_difference(reference_hu, candidate_hu, roi) ** 2)))


def mae_hu(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute error in HU, unclipped, in the roi (None: every pixel)."""
    return _mean(np.abs(_difference(reference_hu, candidate_hu, roi)))


def hu_bias(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_] | None = None) -> float:
    """Mean of candidate − reference in HU: what a denoiser adds to or takes from CT numbers; NaN for an empty roi."""
    return _mean(_difference(reference_hu, candidate_hu, roi))
