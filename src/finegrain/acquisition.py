"""What a network is told of the scan, where it is known: the dose, the reconstruction kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ConfigError

ACQUISITION_NUMBERS = 4
"""Length of what `Acquisition.numbers` gives."""


@dataclass(frozen=True)
class Acquisition:
    """Dose and kernel of an image; what is None, the network estimates from the image.

    Attributes:
        dose_fraction: dose of the image over the normal one, in (0, 1].
        kernel_half_per_mm: frequency at which the reconstruction kernel passes half, in cycles/mm.
        pixel_mm: pixel size; with it the kernel says how fine the noise is in pixels.
    """

    dose_fraction: float | None = None
    kernel_half_per_mm: float | None = None
    pixel_mm: float | None = None

    def __post_init__(self) -> None:
        if self.dose_fraction is not None and not 0 < self.dose_fraction <= 1:
            raise ConfigError(f"the dose fraction must lie in (0, 1], got {self.dose_fraction}")
        if (self.kernel_half_per_mm is None) != (self.pixel_mm is None):
            raise ConfigError("a kernel's frequency and the pixel size say something together only; give both or neither")
        for what, value in (("kernel's frequency in cycles/mm", self.kernel_half_per_mm), ("pixel size in mm", self.pixel_mm)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"the {what} must be positive and finite, got {value}")

    def numbers(self) -> NDArray[np.float32]:
        """Dose known (1 or 0), log₂ of the dose fraction, kernel known, its frequency over Nyquist; 0 for what is not known."""
        dose = (0.0, 0.0) if self.dose_fraction is None else (1.0, math.log2(self.dose_fraction))
        kernel = (0.0, 0.0)
        if self.kernel_half_per_mm is not None and self.pixel_mm is not None:
            # Beyond Nyquist there is no difference to be seen.
            kernel = (1.0, min(2 * self.pixel_mm * self.kernel_half_per_mm, 2.0))
        return np.array([*dose, *kernel], np.float32)
