"""A polychromatic beam: spectra, beam hardening in water and bone, and the water correction that every scanner applies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ConfigError
from finegrain.hu import MU_WATER_PER_MM, hu_to_mu

ENERGY_KEV = np.arange(20.0, 150.0, 5.0)
"""Middle of each energy bin."""

FLUENCE: dict[int, tuple[float, ...]] = {
    80: (
        0.0001, 0.00481, 0.03072, 0.07641, 0.11804, 0.14118, 0.14553, 0.13614, 0.1374, 0.09653, 0.07027, 0.03601, 0.00687, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ),
    100: (
        5e-05, 0.00265, 0.01823, 0.04829, 0.07889, 0.09949, 0.10838, 0.10813, 0.15806, 0.09707, 0.08815, 0.05886, 0.04937, 0.03885,
        0.0275, 0.01524, 0.00279, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ),
    120: (
        3e-05, 0.00171, 0.01246, 0.03473, 0.05925, 0.07758, 0.08746, 0.09022, 0.16615, 0.08966, 0.08679, 0.05474, 0.05018, 0.04489,
        0.03921, 0.03325, 0.02715, 0.02089, 0.01446, 0.00781, 0.0014, 0, 0, 0, 0, 0,
    ),
    140: (
        2e-05, 0.00121, 0.00924, 0.0269, 0.04761, 0.06429, 0.07442, 0.07862, 0.16765, 0.08338, 0.08307, 0.04892, 0.04657, 0.04348,
        0.03998, 0.0362, 0.03229, 0.02833, 0.02437, 0.02043, 0.0165, 0.01257, 0.00858, 0.00456, 0.00081, 0,
    ),
}  # fmt: skip
"""Share of the photons in each bin by kVp: tungsten, 7° anode, 3 mm Al and 0.9 mm Ti. Half-value layers 5.8, 7.1, 8.1 and 9.0 mm
Al. Computed with SpekPy 2.5.4 (Poludniowski et al. 2021, Med Phys 48:3630)."""

MU_WATER_PER_CM = np.array([
    0.7985, 0.5039, 0.3739, 0.307, 0.2684, 0.2439, 0.2274, 0.2154, 0.2064, 0.1992, 0.1933, 0.1884, 0.184, 0.1803, 0.1769, 0.1738,
    0.171, 0.1684, 0.166, 0.1637, 0.1615, 0.1595, 0.1576, 0.1557, 0.154, 0.1523,
])  # fmt: skip
"""Attenuation of liquid water at `ENERGY_KEV`; data of SpekPy 2.5.4, within 1.5 % of NIST XCOM."""

MU_BONE_PER_CM = np.array([
    7.627, 4.116, 2.54, 1.731, 1.272, 0.993, 0.8125, 0.6901, 0.6038, 0.5407, 0.4935, 0.458, 0.4282, 0.4056, 0.3859, 0.3705,
    0.3566, 0.3453, 0.3351, 0.3265, 0.3186, 0.3113, 0.3052, 0.2994, 0.2939, 0.2891,
])  # fmt: skip
"""Attenuation of cortical bone (ICRU); data of SpekPy 2.5.4."""

SOFT_HU, BONE_HU = 100.0, 400.0
"""Up to the first a pixel is water of some density, from the second on bone; between them both, in parts."""


@dataclass(frozen=True)
class Spectrum:
    """The beam of one tube voltage, on a detector that integrates energy.

    Noise stays that of counted photons of the mean transmission (no compound Poisson); contrast agent is taken for bone.
    """

    kvp: int = 120

    def __post_init__(self) -> None:
        if self.kvp not in FLUENCE:
            raise ConfigError(f"no spectrum of {self.kvp} kVp; known are {', '.join(map(str, FLUENCE))}")

    @cached_property
    def signal(self) -> NDArray[np.float64]:
        """Share of the detector's signal in each bin: photons times energy. Shape: (energy,)."""
        signal = np.array(FLUENCE[self.kvp]) * ENERGY_KEV
        return signal / signal.sum()

    @cached_property
    def relative_mu(self) -> NDArray[np.float64]:
        """Attenuation of water and bone relative to that where water has `MU_WATER_PER_MM` (70 keV). Shape: (2, energy)."""
        mu = np.stack([MU_WATER_PER_CM, MU_BONE_PER_CM])
        reference = np.interp(-10 * MU_WATER_PER_MM, -MU_WATER_PER_CM, ENERGY_KEV)
        at_reference = np.array([np.interp(reference, ENERGY_KEV, row) for row in mu])
        return mu / at_reference[:, None]

    def measured(self, water: NDArray[np.floating], bone: NDArray[np.floating]) -> NDArray[np.float32]:
        """−ln of the transmitted signal behind water and bone, given as monoenergetic line integrals (`split_materials`).

        Shape: any, the same; dimensionless.
        """
        total = np.zeros(np.shape(water), dtype=np.float32)
        for share, mu_water, mu_bone in zip(self.signal, *self.relative_mu, strict=True):
            if share > 0:
                exponent = np.float32(mu_water) * water + np.float32(mu_bone) * bone
                total += np.float32(share) * np.exp(-exponent, dtype=np.float32)
        return -np.log(total)

    def water_corrected(self, water: NDArray[np.floating], bone: NDArray[np.floating]) -> NDArray[np.float32]:
        """The same, mapped so that water alone comes out linear: bone leaves its dark bands, as in a scanner."""
        straight = np.linspace(-1.0, 25.0, 2081)  # the projector rings below zero beside sharp edges
        hardened = self.measured(straight, np.zeros_like(straight))
        return np.interp(self.measured(water, bone), hardened, straight).astype(np.float32)


def split_materials(hu: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Monoenergetic attenuation in 1/mm of the water and of the bone in each pixel; they add up to that of the image.

    Shape: any → the same, twice.
    """
    mu = hu_to_mu(np.asarray(hu, dtype=np.float32)).astype(np.float32)
    bone = np.clip((hu - SOFT_HU) / (BONE_HU - SOFT_HU), 0, 1).astype(np.float32)
    return mu * (1 - bone), mu * bone
