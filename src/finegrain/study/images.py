"""The images that a method gives: the denoised slice itself, and what blends and equalisers make of it for free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.config import StudyConfig
from finegrain.equaliser import BandEqualiser

BLENDS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the input added back to the spatial-only network's output: a free way to high-frequency energy."""

EQUALISERS = (0.5, 1.0)
"""Strengths of the band equaliser on the same output: another free way."""


@dataclass(frozen=True)
class Recipe:
    """How an image is made of a denoised slice and its low dose.

    Attributes:
        blend: share of the low dose that is added back.
        strength: of the band equaliser; 0 leaves it out.
        equaliser: its `tables`.
        dose_fraction: that the equaliser is told; None if it is told none.
    """

    blend: float = 0.0
    strength: float = 0.0
    equaliser: Mapping[str, Any] | None = None
    dose_fraction: float | None = None

    def image(self, denoised: NDArray[np.float32], low_dose: NDArray[np.float32]) -> NDArray[np.float32]:
        """The image in HU. Shape: (y, x) all."""
        if self.blend:
            return np.asarray(self.blend * low_dose + (1 - self.blend) * denoised, dtype=np.float32)
        if self.equaliser is None:
            return denoised
        equaliser = BandEqualiser.from_tables(self.equaliser)
        return equaliser.apply(denoised, low_dose, strength=self.strength, dose_fraction=self.dose_fraction)


def image_label(name: str, seed: int | None) -> str:
    """An image, or a method, with the seed that its network was trained with."""
    return name if seed is None else f"{name}, seed {seed}"


def spatial_arm(config: StudyConfig) -> str | None:
    """The arm that the free competitors start from: the hybrid with the spatial loss alone."""
    return next((arm.name for arm in config.own_arms if arm.family == "hybrid" and arm.loss.weight == 0), None)


def equalised_name(lead: str) -> str:
    """A network with its own equaliser at full strength."""
    return f"{lead}, equalised"


def told_the_dose(equalised: str) -> str:
    """The same where the equaliser is told the dose. The network is not: all networks of a study see the image alone."""
    return f"{equalised}, dose told"


def recipes_of(
    config: StudyConfig, arm: str, equaliser: Mapping[str, Any] | None, dose_fraction: float | None = None
) -> dict[str, Recipe]:
    """The images that come from an arm, by name, the denoised slice first.

    Args:
        equaliser: `tables` of the arm's own; None if it has none.
        dose_fraction: of the slice over the normal dose.
    """
    full = Recipe(strength=1.0, equaliser=equaliser)
    found = {arm: Recipe()}
    if arm == spatial_arm(config):
        found |= {f"blend {share:g}": Recipe(blend=share) for share in BLENDS}
        found |= {f"equaliser {strength:g}": replace(full, strength=strength) for strength in EQUALISERS}
        found[told_the_dose("equaliser 1")] = replace(full, dose_fraction=dose_fraction)
    elif arm in config.leads:
        found[equalised_name(arm)] = full
        found[told_the_dose(equalised_name(arm))] = replace(full, dose_fraction=dose_fraction)
    return found


def free_names(config: StudyConfig) -> list[str]:
    """Images that need no training: blends and equalisers of the spatial-only network, the equalisers of those that lead."""
    spatial = spatial_arm(config)
    starts = [name for name in dict.fromkeys((spatial, *config.leads)) if name is not None]
    return [free for name in starts for free in list(recipes_of(config, name, None))[1:]]
