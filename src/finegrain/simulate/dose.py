"""Photons: mean counts per ray, their noise, and the noise that is missing between two doses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ConfigError
from finegrain.simulate.geometry import ParallelBeam

COUNT_FLOOR = 0.5
"""A starved ray counts half a photon: the logarithm needs something. It sets the strength of starvation streaks."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How many photons each ray of the full-dose scan carries, and what disturbs the count.

    Attributes:
        photons: per fan ray in air at the centre of the bow-tie, full dose. About 5·10⁵ for 200 mAs and 1 mm slices at
            120 kVp (Zeng et al. 2015, air scan of a Sensation 16); proportional to mAs × slice thickness.
        electronic_noise: standard deviation of the read-out in photons. 3.3: Zeng et al. 2015, σₑ² ≈ 11.
        bowtie: whether the bow-tie filter thins the fan towards its edges (our fit to the same air scan, rms 0.03).
    """

    photons: float = 1e6
    electronic_noise: float = 3.3
    bowtie: bool = True

    def __post_init__(self) -> None:
        if not (np.isfinite(self.photons) and self.photons > 0):
            raise ConfigError(f"photons per ray must be positive, got {self.photons}")
        if not (np.isfinite(self.electronic_noise) and self.electronic_noise >= 0):
            raise ConfigError(f"electronic noise must not be negative, got {self.electronic_noise} photons")

    def mean_counts(self, beam: ParallelBeam) -> NDArray[np.float64]:
        """Mean full-dose counts in air of each detector cell, from one of the two half turns. Shape: (detector,)."""
        gamma = beam.fan.fan_angle_rad(beam.detector_positions_mm)
        profile = 0.11 + 0.89 * np.exp(-((np.abs(gamma) / 0.204) ** 2.44)) if self.bowtie else np.ones_like(gamma)
        return self.photons * profile * beam.rays_per_cell

    def electronic_sd(self, beam: ParallelBeam) -> NDArray[np.float64]:
        """Standard deviation of the read-out noise of each cell: that of one element, by how many share it."""
        return self.electronic_noise * np.sqrt(beam.rays_per_cell)


DELTA_METHOD_FLOOR = 3.0
"""Counts below which the delta method overstates the noise of a logarithm: its variance is held there (by Monte Carlo, the noise
that `noisy_sinogram` lacks at a quarter dose grows no more below three counts)."""


def check_dose_fraction(dose_fraction: float) -> None:
    """Raises: ConfigError unless 0 < dose_fraction ≤ 1."""
    if not 0 < dose_fraction <= 1:
        raise ConfigError(f"dose_fraction must lie in (0, 1], got {dose_fraction}")


def noisy_sinogram(
    sinogram: NDArray[np.floating],
    beam: ParallelBeam,
    exposure: Exposure,
    *,
    dose_fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """What a scan at `dose_fraction` measures of noise-free line integrals: Poisson counts and electronic noise.

    A full turn sees each line twice, from opposite sides; the mean of the two logarithms is taken, as in a scanner, not the
    logarithm of the sum: that keeps the bias of starved rays right.

    Shape: (..., view, detector), dimensionless, in and out.
    """
    check_dose_fraction(dose_fraction)
    air = exposure.mean_counts(beam) * dose_fraction
    expected = air * np.exp(-np.asarray(sinogram, dtype=np.float64))
    total = np.zeros(sinogram.shape)
    for _half_turn in range(2):
        counts = generator.poisson(expected) + exposure.electronic_sd(beam) * generator.standard_normal(sinogram.shape)
        total -= np.log(np.maximum(counts, COUNT_FLOOR) / air)
    return (total / 2).astype(np.float32)


def missing_noise(
    sinogram: NDArray[np.floating],
    beam: ParallelBeam,
    exposure: Exposure,
    *,
    dose_fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """The noise, in line integrals, that a full-dose scan lacks to be one at `dose_fraction`.

    For a real scan, whose own noise is there already: drawing Poisson counts around it would count that noise twice (+12 % at a
    quarter). The variance is the difference of those of the two doses, Gaussian by the delta method. Source: form of Yu et
    al. 2012 (J Comput Assist Tomogr 36:477), derived here for the mean of two opposite rays. Good above some 20 counts a ray at
    the low dose; the bias that starved rays get from the logarithm is not made.

    Shape: (..., view, detector), dimensionless, in and out.
    """
    check_dose_fraction(dose_fraction)
    air = exposure.mean_counts(beam)
    counts = air * np.exp(-np.asarray(sinogram, dtype=np.float64)) * dose_fraction
    inverse_counts = 1 / np.maximum(counts, DELTA_METHOD_FLOOR)
    inverse_counts *= dose_fraction
    a = dose_fraction
    quantum = (1 - a) / a * inverse_counts
    electronic = (1 - a**2) / a**2 * (exposure.electronic_sd(beam) * inverse_counts) ** 2
    return (np.sqrt((quantum + electronic) / 2) * generator.standard_normal(sinogram.shape)).astype(np.float32)
