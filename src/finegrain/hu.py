"""HU ↔ linear attenuation ↔ the network's unit range: the one home of these conversions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ConfigError

MU_WATER_PER_MM = 0.0192
"""Linear attenuation of water at about 70 keV effective energy, 1/mm (NIST XCOM: 0.0193/mm at 70 keV)."""

AIR_HU = -1000.0


def hu_to_mu(hu: NDArray[np.floating], *, mu_water_per_mm: float = MU_WATER_PER_MM) -> NDArray[np.floating]:
    """Linear attenuation in 1/mm of CT numbers in HU; values below air give 0, for nothing attenuates less than nothing.

    >>> hu_to_mu(np.array([-1000.0, 0.0])).tolist()
    [0.0, 0.0192]
    """
    return np.maximum(mu_water_per_mm * (1 + hu / 1000), 0)


def mu_to_hu(mu: NDArray[np.floating], *, mu_water_per_mm: float = MU_WATER_PER_MM) -> NDArray[np.floating]:
    """CT numbers in HU of linear attenuation in 1/mm."""
    return 1000 * (mu - mu_water_per_mm) / mu_water_per_mm


@dataclass(frozen=True)
class HURange:
    """The HU interval that a network sees as [0, 1]; values outside are clipped on the way in.

    The default is the 12-bit CT scale. Integer HU survive the round trip bit for bit in float32.

    >>> HURange().to_hu(HURange().to_unit(np.array([-1024.0, 40.0, 3071.0]))).tolist()
    [-1024.0, 40.0, 3071.0]
    """

    low: float = -1024.0
    high: float = 3071.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"HU range needs low < high, got [{self.low}, {self.high}]")

    @property
    def span(self) -> float:
        """Width in HU: one unit of network range."""
        return self.high - self.low

    def to_unit(self, hu: NDArray[np.floating]) -> NDArray[np.float32]:
        """HU → [0, 1], float32, clipped."""
        return ((np.clip(hu, self.low, self.high) - self.low) / self.span).astype(np.float32)

    def to_hu(self, unit: NDArray[np.floating]) -> NDArray[np.float32]:
        """[0, 1] → HU, float32; computed in float64 and rounded to 2⁻¹⁰ HU, so that the inverse is exact for integers."""
        hu = unit.astype(np.float64) * self.span + self.low
        return (np.round(hu * 1024) / 1024).astype(np.float32)
