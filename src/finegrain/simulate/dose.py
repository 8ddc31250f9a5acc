"""Photons: mean counts per ray, their noise, and the noise that is missing between two doses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage, special

from finegrain.errors import ConfigError
from finegrain.simulate.geometry import ParallelBeam

COUNT_FLOOR = 0.5
"""A starved ray counts half a photon: the logarithm needs something. It sets the strength of starvation streaks."""

LEAST_DOSE_FRACTION = 0.001
"""Below it no clinical scan leaves counts enough for an image, and the streams of two doses might not differ."""

REFERENCE_PEAK = 6.14
"""Line integral through 32 cm of water, the standard adult of modulation along z."""

BODY_LINE_INTEGRAL = 0.1
"""Rays with a larger line integral pass through the body."""

PEAK_MM = 30.0
"""Tube-current modulation follows the mean line integral of the most attenuated 30 mm of a view."""


@dataclass(frozen=True)
class BowTie:
    """Transmission of the bow-tie filter, floor + (1 − floor)·exp(−(|γ|/width)^power), 1 on the central ray."""

    floor: float
    width_rad: float
    power: float
    origin: str

    def __call__(self, gamma_rad: NDArray[np.floating]) -> NDArray[np.float64]:
        """Transmission at fan angle γ, in (0, 1]."""
        return self.floor + (1 - self.floor) * np.exp(-((np.abs(gamma_rad) / self.width_rad) ** self.power))


BOWTIES: dict[str, BowTie] = {
    "definition": BowTie(
        0.176,
        0.1406,
        2.03,
        "fitted with modulation and read-out noise to noise maps of 32 quarter-minus-full images of a Definition AS+",
    ),
    "sensation": BowTie(0.11, 0.204, 2.44, "fitted, rms 0.03, to the air scan of a Sensation 16 (Zeng et al. 2015)"),
    "none": BowTie(1.0, 1.0, 2.0, "no filter"),
}

PHOTONS_PER_MAS_MM = 1300.0
"""Photons per fan ray, mAs and mm of slice at 120 kVp that explain the noise of 32 Definition AS+ images, two kernels, within
5 % of SD; a Sensation 64 chest series needs 1440. It holds detection and helical weighting; air scans give more (Zeng et al.
2015: 1900)."""

KVP_EXPONENT = 3.8
"""Photons grow as kVp^3.8: half at 100 kVp of those at 120, as measured on the same scanner; beyond them extrapolated."""

STARVED_PHOTONS = 180.0
"""`Exposure.adaptive_below` of a scanner: with it, the dark bands in 6 quarter-minus-full images of starved shoulders and hips
are foretold (correlation up to 0.8); without it they come out bright."""

ROW_MM = 0.6
"""Width of the detector row that `Exposure.electronic_noise` = 3.3 is known for; a thicker slice is read out by more rows."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How many photons each ray of the full-dose scan carries, and what disturbs the count.

    Attributes:
        photons: per fan ray in air at the centre of the bow-tie, full dose, mean over the views. About 5·10⁵ for 200 mAs and
            2 mm slices at 120 kVp; proportional to mAs × slice thickness (`from_mas`).
        electronic_noise: standard deviation of the read-out in photons. 3.3: Zeng et al. 2015, σₑ² ≈ 11, one detector row.
        bowtie: name of the filter that thins the fan towards its edges (`BOWTIES`).
        modulation: strength of the tube-current modulation along the angle: the current of a view goes as
            exp(modulation · line integral of its most attenuated rays), mean kept. 0.5 gives the least noise for the dose (Gies
            et al. 1999, Med Phys 26:2235); scanners take less: 0.32 fits the noise of Definition AS+ images; 0 is a fixed current.
        modulation_z: strength of the modulation along z: the photons of a slice go as exp(modulation_z · (its mean peak line
            integral − that of 32 cm of water)), `photons` being those of such a slice. 1 keeps the noise the same in all slices:
            the mAs of two of three patients on a Definition AS+ follow 1.0, the third's, near the tube's limit, 0.4. For phantoms;
            a real scan's headers tell. 0 is a fixed current.
        crosstalk: share of a detector element's signal that leaks into each of its two neighbours.
        adaptive_below: photons per ray under which a ray is blended with its neighbours before the logarithm, as scanners treat
            starved rays (Hsieh 1998, Med Phys 25:2139; Kachelriess et al. 2001, Med Phys 28:475). `STARVED_PHOTONS` fits a
            Definition AS+; 0 does nothing.
    """

    photons: float = 1e6
    electronic_noise: float = 3.3
    bowtie: str = "definition"
    modulation: float = 0.3
    modulation_z: float = 0.0
    crosstalk: float = 0.0
    adaptive_below: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.photons) and self.photons > 0):
            raise ConfigError(f"photons per ray must be positive, got {self.photons}")
        if not (np.isfinite(self.electronic_noise) and self.electronic_noise >= 0):
            raise ConfigError(f"electronic noise must not be negative, got {self.electronic_noise} photons")
        if self.bowtie not in BOWTIES:
            raise ConfigError(f"unknown bow-tie {self.bowtie!r}; known are {', '.join(sorted(BOWTIES))}")
        if not 0 <= self.modulation <= 1:
            raise ConfigError(f"tube-current modulation must lie in [0, 1], got {self.modulation}")
        if not 0 <= self.modulation_z <= 2:
            raise ConfigError(f"tube-current modulation along z must lie in [0, 2], got {self.modulation_z}")
        if not 0 <= self.crosstalk < 0.25:
            raise ConfigError(f"crosstalk into each neighbour must lie in [0, 0.25), got {self.crosstalk}")
        if not (np.isfinite(self.adaptive_below) and self.adaptive_below >= 0):
            raise ConfigError(f"adaptive_below must not be negative, got {self.adaptive_below} photons")

    @classmethod
    def from_mas(cls, mas: float, *, slice_mm: float, kvp: float = 120.0, **settings: Any) -> Exposure:
        """The exposure of a tube current–time product per slice (effective mAs, that is mAs/pitch, for a helical scan).

        Args:
            mas: mAs at the mean of the modulation.
            slice_mm: slice thickness; photons and read-out noise of its rows are summed.
            kvp: tube voltage.
        """
        if not (mas > 0 and slice_mm > 0 and 40 <= kvp <= 200):
            raise ConfigError(f"expected mAs and slice thickness above 0 and 40–200 kVp, got {mas} mAs, {slice_mm} mm, {kvp} kVp")
        photons = PHOTONS_PER_MAS_MM * mas * slice_mm * (kvp / 120) ** KVP_EXPONENT
        return cls(photons=photons, **{**scanner_settings(slice_mm), **settings})

    def at_photons(self, photons: float) -> Exposure:
        """The same with another number of photons."""
        return replace(self, photons=photons)

    def air_counts(self, sinogram: NDArray[np.floating], beam: ParallelBeam) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean full-dose counts in air of each cell, from each of the two half turns. Shape: (view, detector) each."""
        gamma = beam.gamma_rad
        profile = self.photons_of_slice(sinogram, beam) * BOWTIES[self.bowtie](gamma) * beam.rays_per_cell
        if self.modulation == 0:
            same = np.broadcast_to(profile.astype(np.float32), (beam.n_views, beam.n_detector))
            return same, same
        current = tube_current(sinogram, beam, strength=self.modulation)
        angles = beam.angles_rad[:, None]
        first, second = (
            (np.interp(np.mod(beta, np.pi), np.append(beam.angles_rad, np.pi), np.append(current, current[0])) * profile)
            for beta in (angles + gamma, angles - gamma)
        )
        return first.astype(np.float32), second.astype(np.float32)

    def photons_of_slice(self, sinogram: NDArray[np.floating], beam: ParallelBeam) -> float:
        """Photons per ray after modulation along z. Shape: sinogram (view, detector)."""
        if self.modulation_z == 0:
            return self.photons
        return self.photons * float(np.exp(self.modulation_z * (_peaks(sinogram, beam).mean() - REFERENCE_PEAK)))

    def electronic_sd(self, beam: ParallelBeam) -> NDArray[np.float32]:
        """Standard deviation of the read-out noise of each cell: that of one element, by how many share it."""
        return (self.electronic_noise * np.sqrt(beam.rays_per_cell)).astype(np.float32)

    def parameters(self) -> dict[str, Any]:
        """Every value, for a manifest."""
        return asdict(self)


def scanner_settings(slice_mm: float) -> dict[str, Any]:
    """What disturbs the count of a slice in a clinical scanner: read-out noise of all its rows, averaging of starved rays."""
    return {"electronic_noise": float(3.3 * np.sqrt(max(slice_mm / ROW_MM, 1.0))), "adaptive_below": STARVED_PHOTONS}


def tube_current(sinogram: NDArray[np.floating], beam: ParallelBeam, *, strength: float) -> NDArray[np.float64]:
    """Relative tube current of each view, mean 1, as angular modulation sets it. Shape: (view, detector) → (view,)."""
    peak = _peaks(sinogram, beam)
    current = np.exp(strength * (peak - peak.mean()))
    return current / current.mean()


def _peaks(sinogram: NDArray[np.floating], beam: ParallelBeam) -> NDArray[np.float64]:
    """Mean line integral of the most attenuated `PEAK_MM` of each view. Shape: (view, detector) → (view,)."""
    n = max(1, min(beam.n_detector, round(PEAK_MM / beam.detector_mm)))
    return np.partition(np.asarray(sinogram), -n, axis=-1)[..., -n:].mean(axis=-1, dtype=np.float64)


@dataclass(frozen=True)
class Measurement:
    """What a scan measured, and how far it was starved of photons."""

    line_integrals: NDArray[np.float32]
    """Shape (view, detector), dimensionless."""
    starved_share: float
    """Share of the rays through the body (`BODY_LINE_INTEGRAL`) that counted no more than `COUNT_FLOOR` photons."""


def check_dose_fraction(dose_fraction: float) -> None:
    """Raises: ConfigError unless `LEAST_DOSE_FRACTION` ≤ dose_fraction ≤ 1."""
    if not LEAST_DOSE_FRACTION <= dose_fraction <= 1:
        raise ConfigError(f"dose_fraction must lie in [{LEAST_DOSE_FRACTION:g}, 1], got {dose_fraction}")


def measure(
    sinogram: NDArray[np.floating],
    beam: ParallelBeam,
    exposure: Exposure,
    *,
    dose_fraction: float,
    generator: np.random.Generator,
) -> Measurement:
    """What a scan at `dose_fraction` measures of noise-free line integrals: Poisson counts, crosstalk and electronic noise.

    A full turn sees each line twice, from opposite sides; the mean of the two logarithms is taken, as in a scanner, not the
    logarithm of the sum: that keeps the bias of starved rays right.

    Shape: (view, detector), dimensionless, in and out.
    """
    check_dose_fraction(dose_fraction)
    chain = _Detector(beam, exposure)
    transmission = np.exp(-np.asarray(sinogram, dtype=np.float32))
    total, starved = np.zeros((2, *sinogram.shape), dtype=np.float32)
    for share, full in zip(beam.half_turn_shares.astype(np.float32), exposure.air_counts(sinogram, beam), strict=True):
        air = full * np.float32(dose_fraction)
        counts = chain.signal(_poisson(air * transmission, generator), chain.readout(generator))
        total += share * chain.line_integral(counts, air)
        starved += share * (chain.per_element(counts) <= COUNT_FLOOR * chain.rays_per_cell)
    body = np.asarray(sinogram) > BODY_LINE_INTEGRAL
    return Measurement(total, float(starved[body].mean()) if body.any() else 0.0)


def missing_noise(
    sinogram: NDArray[np.floating],
    beam: ParallelBeam,
    exposure: Exposure,
    *,
    dose_fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """The change of line integrals that makes a full-dose scan one at `dose_fraction`: the noise that it lacks.

    For a real scan, whose own noise is there already: drawing Poisson counts around it would count that noise twice (+12 % at a
    quarter). Both scans are drawn, the low one a thinning of the full one – y_full = y_low + y_rest, both Poisson, and the read-out
    noise in common as far as it is – taken through the same logarithm (and averaging of starved rays), and subtracted. The
    variance of the difference is that of the two doses' difference, (1 − a)/(a N) + (1 − a²)/(a² N²) σₑ², the form of Yu et
    al. 2012 (J Comput Assist Tomogr 36:477); what few counts do to the mean comes along, as it does in a scanner.

    Shape: (view, detector), dimensionless, in and out.
    """
    check_dose_fraction(dose_fraction)
    a = np.float32(dose_fraction)
    chain = _Detector(beam, exposure)
    transmission = np.exp(-np.asarray(sinogram, dtype=np.float32))
    total = np.zeros(sinogram.shape, dtype=np.float32)
    for share, air in zip(beam.half_turn_shares.astype(np.float32), exposure.air_counts(sinogram, beam), strict=True):
        expected = air * transmission
        low = _poisson(a * expected, generator)
        full = low + _poisson((1 - a) * expected, generator)
        readout = chain.readout(generator)
        low = chain.signal(low, a * readout + np.sqrt(1 - a**2) * chain.readout(generator))
        full = chain.signal(full, readout)
        total += share * (chain.line_integral(low, a * air) - chain.line_integral(full, air))
    return total


class _Detector:
    """From photons in a cell to its line integral; photons are counted per cell, of which several or a part make a ray."""

    def __init__(self, beam: ParallelBeam, exposure: Exposure) -> None:
        self.beam, self.exposure = beam, exposure
        self.rays_per_cell = beam.rays_per_cell.astype(np.float32)
        self.electronic_sd = exposure.electronic_sd(beam)
        self.element = _element_taps(float(beam.rays_per_cell[beam.n_detector // 2]))

    def readout(self, generator: np.random.Generator) -> NDArray[np.float32]:
        """Electronic noise of every cell, in photons."""
        return self.electronic_sd * generator.standard_normal((self.beam.n_views, self.beam.n_detector), dtype=np.float32)

    def signal(self, photons: NDArray, readout: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the electronics hand on, in photons."""
        photons = photons.astype(np.float32, copy=False)
        if self.exposure.crosstalk:
            photons = _leak(photons, self.beam, self.exposure.crosstalk)
        return photons + readout

    def line_integral(self, counts: NDArray[np.float32], air: NDArray[np.float32]) -> NDArray[np.float32]:
        """−ln(counts/air), after `_treat_starved` if the exposure says so."""
        bias: NDArray[np.float32] | float = 0.0
        if self.exposure.adaptive_below:
            counts, bias = self._treat_starved(counts)
        plain = -np.log(np.maximum(counts, np.float32(COUNT_FLOOR) * self.rays_per_cell) / air) - bias
        around = ndimage.uniform_filter1d(counts, 2 * len(self.element) + 1, axis=-1, mode="nearest")
        few = around < FEW_PHOTONS * self.rays_per_cell
        if not few.any():
            return plain
        # A cell is a part of a detector element, but the scanner takes the logarithm of what an element counts: the curvature of
        # the logarithm belongs to the element's count, only the linear part to the cell's. Else the bias of few counts doubles.
        mean = np.maximum(self.per_element(counts), np.float32(COUNT_FLOOR) * self.rays_per_cell)
        linear = (counts - mean) / np.maximum(around, 5 * self.rays_per_cell)
        return np.where(few, -np.log(mean / air) - linear - bias, plain)

    def per_element(self, counts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Running mean of the counts with the relative noise of a whole detector element."""
        return ndimage.convolve1d(counts, self.element, axis=-1, mode="nearest")

    def _treat_starved(self, counts: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Blend rays of fewer photons than `adaptive_below` with the mean of their neighbours, the more the fewer they are.

        The mean, not the count itself, tells who is starved: to pick the counts that happen to be low would raise their mean. Given
        beside them is what the logarithm of the noise that is left adds on average, (c + σₑ²)/(2 c²) of an element; real images
        of few photons do not show it.
        """
        cells = 2 * round(AVERAGED_MM / self.beam.detector_mm / 2) + 1
        mean = ndimage.uniform_filter1d(counts, cells, axis=-1, mode="nearest")
        mean = ndimage.uniform_filter1d(mean, AVERAGED_VIEWS, axis=0, mode="nearest")
        photons = np.maximum(mean / self.rays_per_cell, np.float32(5.0))
        weight = np.square(np.clip(1 - photons / np.float32(self.exposure.adaptive_below), 0, 1))
        bias = np.square(1 - weight) * (photons + np.float32(self.exposure.electronic_noise**2)) / (2 * photons * photons)
        return counts + weight * (mean - counts), bias


def _element_taps(rays_per_cell: float) -> NDArray[np.float32]:
    """Weights f, 1 … 1, f of a running mean over cells that has the variance of one detector element, Σ w² = rays_per_cell.

    No mean if a cell holds a whole element or more.
    """
    if rays_per_cell >= 1:
        return np.ones(1, dtype=np.float32)
    whole = int((1 / rays_per_cell - 1) // 2) * 2 + 1
    # (whole + 2 f²) / (whole + 2 f)² = rays_per_cell; f runs from 0 at 1/whole to 1 at 1/(whole + 2), rounding aside.
    beyond_whole, within_next = max(1 - rays_per_cell * whole, 0.0), max(rays_per_cell * (whole + 2) - 1, 0.0)
    end = whole * beyond_whole / (2 * rays_per_cell * whole + np.sqrt(2 * whole * within_next))
    taps = np.array([end, *[1.0] * whole, end])
    return (taps / taps.sum()).astype(np.float32)


FEW_PHOTONS = np.float32(500.0)
"""Photons per ray below which the curvature of the logarithm matters: its bias there is 1/1000 and more."""

AVERAGED_MM, AVERAGED_VIEWS = 18.0, 3
"""Neighbourhood of a starved ray at the isocentre: it makes the dark bands of quarter-minus-full images of a Definition AS+."""

FEW_COUNTS = np.float32(50.0)
"""Means below which the quantile of a Poisson number is looked up; above, the expansion errs by less than 1e-4 in probability."""


def _poisson(mean: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Poisson numbers, for which one Gaussian number each is drawn, whatever the mean.

    The usual generators accept or reject by the mean, so that a last bit which another processor rounds otherwise gives all that
    follows other noise. Here it changes a few counts by one.
    """
    return poisson_quantile(mean, generator.standard_normal(mean.shape, dtype=np.float32))


def poisson_quantile(mean: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Poisson number of a mean that is as likely to be exceeded as `z` of a standard Gaussian one.

    Above `FEW_COUNTS` it is the Cornish-Fisher expansion for the cumulants of a Poisson number (Abramowitz and Stegun, 26.2.49),
    rounded, with the variance less the twelfth that rounding adds.
    """
    squared, root = z * z, np.sqrt(np.maximum(mean, FEW_COUNTS) - np.float32(1 / 12))
    counts = np.rint(mean + root * z + (squared - 1) / 6 + z * (1 - squared) / (72 * root))
    few = mean < FEW_COUNTS
    counts[few] = _exact_quantile(mean[few].astype(np.float64), special.ndtr(z[few].astype(np.float64)))
    return counts


def _exact_quantile(mean: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest count reached with at least this chance: SciPy's `poisson.ppf`, without loading all of its statistics."""
    count = np.ceil(special.pdtrik(chance, mean))
    below = np.maximum(count - 1, 0)  # the solution in real numbers may lie a rounding above a whole count
    return np.where(special.pdtr(below, mean) >= chance, below, count)


def log_bias(counts: NDArray[np.floating], electronic_sd: float) -> NDArray[np.float64]:
    """How much too large a line integral comes out on average, E[−ln(max(y, ½)/counts)], for a mean of `counts` photons.

    Exact for Poisson counts with Gaussian read-out noise, by summing over the counts (quadrature over the read-out); above
    300 counts the first term of its expansion, below 0.01 the value there. Shape: any.
    """
    counts = np.asarray(counts, dtype=np.float64)
    grid, table = _bias_table(round(float(electronic_sd), 6))
    large = (1 + electronic_sd**2 / np.maximum(counts, 1)) / (2 * np.maximum(counts, 1))
    return np.where(counts > grid[-1], large, np.interp(np.log(np.maximum(counts, grid[0])), np.log(grid), table))


def starvation_bias(
    sinogram: NDArray[np.floating], beam: ParallelBeam, exposure: Exposure, *, dose_fraction: float
) -> NDArray[np.float32]:
    """`log_bias` of every line integral at `dose_fraction`, mean of the half turns. Shape: (view, detector)."""
    transmission = np.exp(-sinogram) * np.float32(dose_fraction) / beam.rays_per_cell
    bias = sum(
        share * log_bias(air * transmission, exposure.electronic_noise)
        for share, air in zip(beam.half_turn_shares, exposure.air_counts(sinogram, beam), strict=True)
    )
    return np.asarray(bias, dtype=np.float32)


def starved_share(counts: NDArray[np.floating], electronic_sd: float) -> float:
    """Expected share of rays whose Poisson count with Gaussian read-out noise is at or below `COUNT_FLOOR`.

    Args:
        counts: mean photons of each ray, any shape.
        electronic_sd: of the read-out, in photons.
    """
    few = np.asarray(counts)[np.asarray(counts) < 300]  # above, even a read-out noise of 40 photons starves no ray
    if few.size == 0:
        return 0.0
    grid, y, poisson = _poisson_table()
    below = special.ndtr((COUNT_FLOOR - y) / electronic_sd) if electronic_sd > 0 else (y <= COUNT_FLOOR).astype(float)
    return float(np.interp(np.log(np.maximum(few, grid[0])), np.log(grid), poisson @ below).sum() / np.size(counts))


@lru_cache(maxsize=1)
def _poisson_table() -> tuple[NDArray[np.float64], NDArray[np.int_], NDArray[np.float64]]:
    """Means from 0.01 to 300, counts, and how likely each count is at each mean. Shape: (mean,), (count,), (mean, count)."""
    grid, y = np.geomspace(0.01, 300, 120), np.arange(600)
    return grid, y, np.exp(special.xlogy(y[None, :], grid[:, None]) - grid[:, None] - special.gammaln(y[None, :] + 1))


@lru_cache(maxsize=8)
def _bias_table(electronic_sd: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    grid, y, poisson = _poisson_table()
    # Gauss–Hermite nodes would ring at the kink of the floor; a fine midpoint rule does not.
    z = (np.arange(400) + 0.5) / 400
    readout = electronic_sd * special.ndtri(z)
    logarithm = np.log(np.maximum(y[:, None] + readout[None, :], COUNT_FLOOR)).mean(axis=1)
    return grid, np.log(grid) - poisson @ logarithm


def _leak(counts: NDArray[np.floating], beam: ParallelBeam, crosstalk: float) -> NDArray[np.float32]:
    """Each detector element gives `crosstalk` of its signal to either neighbour.

    Neighbours on the detector are a channel apart in γ at the same gantry angle; a channel's angle is a fraction of the step
    between views, so that they are taken from the same parallel view.
    """
    apart_mm = beam.fan.source_iso_mm * beam.fan.channel_angle_rad
    margin = int(np.ceil(apart_mm / beam.detector_mm)) + 1
    padded = np.pad(np.asarray(counts, dtype=np.float32), ((0, 0), (margin, margin)), mode="edge")
    n = scipy.fft.next_fast_len(padded.shape[-1] + margin, real=True)
    padded = np.pad(padded, ((0, 0), (0, n - padded.shape[-1])), mode="edge")
    frequency = scipy.fft.rfftfreq(n, beam.detector_mm)
    response = (1 - 2 * crosstalk + 2 * crosstalk * np.cos(2 * np.pi * frequency * apart_mm)).astype(np.float32)
    leaked = scipy.fft.irfft(scipy.fft.rfft(padded, axis=-1) * response, n=n, axis=-1)
    return leaked[:, margin : margin + counts.shape[-1]].astype(np.float32, copy=False)
