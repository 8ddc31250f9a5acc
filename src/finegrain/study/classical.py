"""Denoisers that are not trained, from well-kept libraries, and the one strength of each, tuned on the validation pairs.

All work on HU clipped to [−1024, 1200], what they leave unseen beyond it is given back, and are told the noise that is estimated
from the slice itself: an oracle would be no fair comparator.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from finegrain.config import ClassicalArm
from finegrain.errors import ConfigError
from finegrain.evaluate.fidelity import Protocol, psnr
from finegrain.evaluate.regions import body_mask
from finegrain.local_noise import median_noise_hu

LOW_HU, HIGH_HU = -1024.0, 1200.0
"""Beyond these, metal and padding would set the scale of a whole slice; ours."""

LEAST_NOISE_HU = 1.0
"""Where a slice shows no noise at all; the step in which a scanner stores HU."""

STEP_BEYOND, MOST_STEPS_BEYOND = 1.4, 8
"""Factor between strengths tried beyond the arm's own, and how many such steps there are at most; ours."""


def denoise_classically(arm: ClassicalArm, hu: NDArray[np.floating], *, strength: float) -> NDArray[np.float32]:
    """A slice denoised by the arm's method. Shape: (y, x) kept, HU.

    `strength` is in units of the noise of the slice: the SD that block matching and non-local means are told, and the weight of
    total variation, over the median noise within the body.

    Raises: ConfigError if the method's package is not installed.
    """
    clipped = np.clip(np.asarray(hu, dtype=np.float64), LOW_HU, HIGH_HU)
    sigma = strength * max(median_noise_hu(clipped, body_mask(clipped)) or 0.0, LEAST_NOISE_HU)
    return (hu + (METHODS[arm.method](clipped, sigma) - clipped)).astype(np.float32)


def _block_matching(hu: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """BM3D. Source: Dabov, Foi, Katkovnik and Egiazarian 2007; program by Mäkinen, Azzari and Foi 2020."""
    try:
        bm3d: Any = importlib.import_module("bm3d")
    except ModuleNotFoundError:
        raise ConfigError("the method bm3d needs the package bm3d, free for non-commercial use: pip install bm3d") from None
    low, span = float(hu.min()), max(float(np.ptp(hu)), 1.0)
    return np.asarray(bm3d.bm3d((hu - low) / span, sigma / span)) * span + low


def _non_local_means(hu: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Non-local means. Source: Buades, Coll and Morel 2005; 0.8 σ as h is scikit-image's own advice."""
    return np.asarray(denoise_nl_means(hu, patch_size=5, patch_distance=7, h=0.8 * sigma, sigma=sigma, fast_mode=True))


def _total_variation(hu: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Total variation. Source: Chambolle 2004."""
    return np.asarray(denoise_tv_chambolle(hu, weight=sigma))


METHODS: dict[str, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "bm3d": _block_matching,
    "nlm": _non_local_means,
    "tv": _total_variation,
}
"""By the name that an arm gives: a slice in HU and the noise that it is told, in HU → the slice denoised."""


def check_installed(arm: ClassicalArm) -> None:
    """Raises: ConfigError if the arm's package is missing; found before anything is done, not after hours."""
    if arm.method == "bm3d" and importlib.util.find_spec("bm3d") is None:
        raise ConfigError(f"the arm {arm.name!r} needs the package bm3d, free for non-commercial use: pip install bm3d")


def version_of(arm: ClassicalArm) -> str | None:
    """Version of the package that a method comes from, if every study's packages do not hold it."""
    return version("bm3d") if arm.method == "bm3d" else None


def tune(
    arm: ClassicalArm, validation: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]], *, protocol: Protocol
) -> dict[float, float]:
    """Mean PSNR in dB on the validation slices (low dose, normal dose) for each of the arm's strengths.

    Where the first or the last of several is best, more are tried beyond it: a comparator at the end of its range was not tuned.
    """
    slices = list(validation)

    def mean_psnr(strength: float) -> float:
        return float(
            np.mean([psnr(normal, denoise_classically(arm, low, strength=strength), protocol=protocol) for low, normal in slices])
        )

    found = {strength: mean_psnr(strength) for strength in sorted(set(arm.strengths))}
    for _ in range(MOST_STEPS_BEYOND if len(found) > 1 else 0):  # one alone is what the user wants
        best, lowest, highest = max(found, key=lambda one: found[one]), min(found), max(found)
        if best not in (lowest, highest):
            break
        beyond = round(highest * STEP_BEYOND if best == highest else lowest / STEP_BEYOND, 4)
        found[beyond] = mean_psnr(beyond)
    return found
