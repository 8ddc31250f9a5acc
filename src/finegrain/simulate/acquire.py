"""The stage's main path: a slice in HU → the same slice at another dose.

Two cases that must not be mixed up. A *phantom* is noise-free, so both doses are drawn from it. A *real scan* has the noise of
its own dose in it, so only the missing noise is reconstructed and added, and the image itself is never projected and
reconstructed again (which would blur it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.errors import GeometryError
from finegrain.frequency import to_blocks
from finegrain.hu import AIR_HU, MU_WATER_PER_MM, hu_to_mu
from finegrain.scan.volume import CTVolume
from finegrain.simulate.dose import Exposure, measure, missing_noise, scanner_settings, starvation_bias
from finegrain.simulate.fbp import ReconKernel, filtered_backprojection, reconstruct_hu
from finegrain.simulate.geometry import FanBeam, ParallelBeam, pixels_from_isocentre
from finegrain.simulate.projector import Projector
from finegrain.simulate.spectrum import Spectrum, split_materials
from finegrain.spread import spread

BODY_HU = -300.0
"""What is brighter counts as body where it matters whether the rays see all of it."""
MOST_OUTSIDE = 1e-4
"""Share of a slice's pixels that may be brighter beyond the field of view; a default, taken from nowhere."""


@dataclass(frozen=True)
class ScannedPhantom:
    """Reconstructions of one phantom slice in HU: without noise, at full dose, at low dose."""

    truth: NDArray[np.float32]
    """Noise-free reconstruction, same kernel. Shape: (y, x)."""
    normal_dose: NDArray[np.float32]
    """Shape: (y, x)."""
    low_doses: NDArray[np.float32]
    """Shape: (dose, y, x), in the order that was asked for."""
    starved_shares: tuple[float, ...]
    """Share of the body's rays that counted nothing: at full dose, then at each low dose."""

    @property
    def low_dose(self) -> NDArray[np.float32]:
        """The first of the low doses. Shape: (y, x)."""
        return self.low_doses[0]


class Scanner:
    """A scanner that has been told its image grid, kernel and exposure.

    Args:
        size: rows and columns of the images.
        pixel_mm: their pixel size.
        kernel: reconstruction kernel.
        exposure: the full-dose exposure.
        margin: pixels of air laid around an image before it is projected. A body that reaches into the corners of the image
            lies outside the inscribed circle, which is all that is projected; `needed_margin` says how much air mends that.
        fan: the scanner's geometry.
        spectrum: a polychromatic beam with water correction, for phantoms; None is a monoenergetic one.
        device: "cpu" or "cuda", for projection and backprojection.
    """

    def __init__(
        self,
        *,
        size: int,
        pixel_mm: float,
        kernel: ReconKernel,
        exposure: Exposure,
        margin: int = 0,
        fan: FanBeam | None = None,
        spectrum: Spectrum | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        whole = size + 2 * margin
        self.beam = ParallelBeam.covering(size=whole, pixel_mm=pixel_mm, fan=fan)
        self.projector = Projector(self.beam, size=whole, pixel_mm=pixel_mm, device=device)
        self.kernel, self.exposure, self.margin, self.spectrum = kernel, exposure, margin, spectrum

    def scan_phantom(
        self,
        hu: NDArray[np.floating],
        *,
        dose_fraction: float | Sequence[float],
        generator: np.random.Generator,
        noise: Literal["independent", "shared"] = "independent",
    ) -> ScannedPhantom:
        """Scan a noise-free slice at full dose and at one or several low doses; all share one forward projection.

        Args:
            dose_fraction: of each low dose.
            noise: "independent" scans anew for each dose; "shared" adds only the missing noise to the full-dose scan, as in
                data sets made by noise insertion. It matters to a loss whether the target's noise can be seen in the input.

        Shape: (y, x).
        Raises: GeometryError if the body reaches out of the field of view.
        """
        doses = np.atleast_1d(np.asarray(dose_fraction, dtype=np.float64)).tolist()
        sinogram = self.line_integrals(hu)
        self.check_inside(hu)
        full = measure(sinogram, self.beam, self.exposure, dose_fraction=1.0, generator=generator)
        measured, starved = [full.line_integrals], [full.starved_share]
        for dose in doses:
            if noise == "shared":
                added = missing_noise(sinogram, self.beam, self.exposure, dose_fraction=dose, generator=generator)
                measured.append(full.line_integrals + added)
                starved.append(math.nan)
            else:
                low = measure(sinogram, self.beam, self.exposure, dose_fraction=dose, generator=generator)
                measured.append(low.line_integrals)
                starved.append(low.starved_share)
        images = reconstruct_hu(np.stack([sinogram, *measured]), self.projector, kernel=self.kernel)
        truth, normal, *low_doses = (self.without_margin(image) for image in images)
        return ScannedPhantom(truth, normal, np.stack(low_doses), tuple(starved))

    def missing_noise_hu(
        self, hu: NDArray[np.floating], *, dose_fraction: float, generator: np.random.Generator, photons: float | None = None
    ) -> NDArray[np.float32]:
        """The noise in HU that a real full-dose slice lacks to be one at `dose_fraction`. Shape: (y, x) in and out.

        Args:
            photons: of this slice, where the tube current changes along z; those of the exposure if not given.
        """
        return self.missing_noises_hu(hu, dose_fractions=[dose_fraction], generators=[generator], photons=photons)[0]

    def missing_noises_hu(
        self,
        hu: NDArray[np.floating],
        *,
        dose_fractions: Sequence[float],
        generators: Sequence[np.random.Generator],
        photons: float | None = None,
    ) -> NDArray[np.float32]:
        """`missing_noise_hu` for several doses of one slice, from one forward projection. Shape: (y, x) → (dose, y, x)."""
        exposure = self.exposure if photons is None else self.exposure.at_photons(photons)
        sinogram = self.line_integrals(hu)
        noises = [
            missing_noise(sinogram, self.beam, exposure, dose_fraction=dose, generator=generator)
            for dose, generator in zip(dose_fractions, generators, strict=True)
        ]
        return self.added_hu(np.stack(noises))

    def noise_hu(
        self, hu: NDArray[np.floating], *, generator: np.random.Generator, dose_fraction: float = 1.0, photons: float | None = None
    ) -> NDArray[np.float32]:
        """The noise in HU of a scan of this slice. Shape: (y, x) in and out."""
        exposure = self.exposure if photons is None else self.exposure.at_photons(photons)
        sinogram = self.line_integrals(hu)
        scan = measure(sinogram, self.beam, exposure, dose_fraction=dose_fraction, generator=generator)
        return self.added_hu(scan.line_integrals - sinogram)

    def starvation_bias_hu(
        self, hu: NDArray[np.floating], *, dose_fraction: float, photons: float | None = None
    ) -> NDArray[np.float32]:
        """The mean error in HU that the plain logarithm of few counts makes at `dose_fraction`, if nothing treats it.

        Shape: (y, x) in and out.
        """
        exposure = self.exposure if photons is None else self.exposure.at_photons(photons)
        return self.added_hu(starvation_bias(self.line_integrals(hu), self.beam, exposure, dose_fraction=dose_fraction))

    def line_integrals(self, hu: NDArray[np.floating]) -> NDArray[np.float32]:
        """Line integrals of attenuation, dimensionless; of a polychromatic beam after water correction.

        Shape: (y, x) → (view, detector).
        """
        if not np.isfinite(hu).all():
            raise GeometryError(f"{np.count_nonzero(~np.isfinite(hu))} pixels are NaN or infinite; a scan needs finite HU")
        padded = np.pad(hu, self.margin, constant_values=AIR_HU)
        if self.spectrum is None:
            return self.projector.forward(hu_to_mu(padded))
        water, bone = self.projector.forward(np.stack(split_materials(padded)))
        return self.spectrum.water_corrected(water, bone)

    def check_inside(self, hu: NDArray[np.floating]) -> None:
        """Raises: GeometryError if the body reaches out of the image's circle or of the fan."""
        size, pixel_mm = hu.shape[-1] + 2 * self.margin, self.projector.pixel_mm
        radius = pixels_from_isocentre(hu.shape[-1]) * pixel_mm
        field_mm = min((size - 1) * pixel_mm, self.beam.fan.field_of_view_mm)
        outside = (np.asarray(hu) > BODY_HU) & (radius > field_mm / 2)
        if outside.mean() > MOST_OUTSIDE:
            raise GeometryError(
                f"the body reaches {radius[outside].max():.0f} mm from the isocentre, the field of view of {field_mm:.0f} mm "
                f"ends at {field_mm / 2:.0f} mm; take a larger image (or margin), or a smaller or better centred object"
            )

    def added_hu(self, sinogram: NDArray[np.floating]) -> NDArray[np.float32]:
        """What is added to line integrals, reconstructed as what it adds to HU. Shape: (..., view, detector) → (..., y, x)."""
        mu = filtered_backprojection(sinogram, self.projector, kernel=self.kernel)
        return self.without_margin(mu * np.float32(1000 / MU_WATER_PER_MM))

    def without_margin(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """A reconstruction without the air around it. Shape: (..., y, x)."""
        inside = slice(self.margin, image.shape[-1] - self.margin)
        return image[..., inside, inside]


def needed_margin(images_hu: NDArray[np.floating]) -> int:
    """Pixels of air that bring every body pixel of square images into the inscribed circle; 0 if it holds them already.

    A handful of bright pixels outside (the edge of a couch, a reconstruction artefact) does not count as body.

    Shape: (..., y, x).
    """
    size = images_hu.shape[-1]
    outside = pixels_from_isocentre(size) > (size - 1) / 2
    share = np.mean(np.asarray(images_hu)[..., outside] > BODY_HU)
    return math.ceil(size * (math.sqrt(2) - 1) / 2) + 1 if share > 0.002 else 0


def simulate_low_dose(volume: CTVolume, *, dose_fraction: float, kernel: ReconKernel, exposure: Exposure, seed: int) -> CTVolume:
    """A real scan as it would look at `dose_fraction`: only the missing noise is added, padding is kept.

    The exposure should be that of the scan: see `matching_exposure`.
    """
    slices = iterate_low_dose(volume, dose_fraction=dose_fraction, kernel=kernel, exposure=exposure, seed=seed)
    return volume.with_hu(np.stack(list(slices)))


def iterate_low_dose(
    volume: CTVolume, *, dose_fraction: float, kernel: ReconKernel, exposure: Exposure, seed: int
) -> Iterator[NDArray[np.float32]]:
    """The slices of `simulate_low_dose`, one after another; each has its own random stream, so any slice repeats alone."""
    scanner = scanner_of(volume, kernel=kernel, exposure=exposure)
    photons = photons_along_z(volume, exposure)
    for index in range(len(volume)):
        generator = slice_generator(seed, index, dose_fraction)
        body = without_padding(volume, index)
        noise = scanner.missing_noise_hu(body, dose_fraction=dose_fraction, generator=generator, photons=photons[index])
        yield volume.hu[index] + noise


def slice_generator(seed: int, index: int, dose_fraction: float) -> np.random.Generator:
    """The random stream of one slice at one dose: neither depends on which other slices and doses are simulated."""
    return np.random.default_rng([seed, index, round(1e6 * dose_fraction)])


def photons_along_z(volume: CTVolume, exposure: Exposure) -> NDArray[np.float64]:
    """Photons per ray of each slice: those of the exposure, modulated as the tube current in the headers is. Shape: (z,).

    The exposure's own photons stand for the median tube current.
    """
    current = volume.tube_current_ma
    if current is None:
        return np.full(len(volume), exposure.photons)
    return exposure.photons * current / np.median(current)


def scanner_of(volume: CTVolume, *, kernel: ReconKernel, exposure: Exposure, fan: FanBeam | None = None) -> Scanner:
    """A scanner with the image grid of a volume.

    Raises: GeometryError for images that are not square or whose pixels are not.
    """
    _, rows, columns = volume.hu.shape
    pixel_y, pixel_x = volume.pixel_mm
    if rows != columns or not volume.has_square_pixels:
        raise GeometryError(
            f"simulation needs square images of square pixels, got {rows} × {columns} pixels of {pixel_y} × {pixel_x} mm"
        )
    bodies = np.where(volume.padding, np.float32(AIR_HU), volume.hu)
    return Scanner(size=rows, pixel_mm=pixel_y, kernel=kernel, exposure=exposure, margin=needed_margin(bodies), fan=fan)


def matching_exposure(
    volume: CTVolume, *, kernel: ReconKernel, exposure: Exposure | None = None, fan: FanBeam | None = None
) -> Exposure:
    """The exposure whose full-dose noise, with this kernel, equals the noise measured in the scan's soft tissue.

    Neither mAs nor kernel in a header fix the photon count (filtration, detector, helical weighting, iterative reconstruction);
    the noise in the image does. How the tube current goes along z is taken from the headers, where they tell
    (`photons_along_z`); the level is the median over up to five slices.

    Args:
        exposure: where to start from, and everything but the photons; by default those of a
            clinical scanner (`dose.scanner_settings`).
        fan: the scanner's geometry: how many rays share a cell changes how many photons each must carry.

    Raises: GeometryError if no slice has soft tissue enough, or noise at all, to measure.
    """
    start = exposure or Exposure(**scanner_settings(volume.thickness_mm))
    scanner = scanner_of(volume, kernel=kernel, exposure=start, fan=fan)
    relative = photons_along_z(volume, start) / start.photons
    photons = []
    chosen = spread(range(len(volume)), 7)
    for index in chosen[1:-1] or chosen:  # the ends of a scan often hold little body
        hu = without_padding(volume, index)
        noises = [
            scanner.noise_hu(hu, generator=np.random.default_rng(seed), photons=start.photons * relative[index])
            for seed in range(2)
        ]
        level = relative_noise(hu, (noises[0], noises[1]), hu, pixel_mm=volume.pixel_mm[0])
        photons.append(start.photons / level**2 if level > 0 else math.nan)
    if np.isnan(photons).all():
        raise GeometryError("no slice holds soft tissue with noise to measure; give the photons per ray")
    return replace(start, photons=float(np.nanmedian(photons)))


def relative_noise(
    image_hu: NDArray[np.floating],
    simulated_hu: tuple[NDArray[np.floating], NDArray[np.floating]],
    anatomy_hu: NDArray[np.floating],
    *,
    pixel_mm: float,
) -> float:
    """Noise of an image over that of two independent simulations of its noise, in soft tissue; NaN where there is too little.

    Square by square, so that where in the body the noise is does not matter; the lower quartile of the ratios, for a square
    with an edge in it has too much, over that of one simulation to the other, which is what chance makes of equal noise.
    Shape: (y, x) each.
    """
    squares = soft_tissue_squares(anatomy_hu, pixel_mm=pixel_mm)
    image, first, second = (squares.fine_sd(one) for one in (image_hu, *simulated_hu))
    if not squares.enough or min(first.min(), second.min()) == 0:
        return float("nan")
    low = [np.quantile(a / b, 0.25) for a, b in ((image, first), (image, second), (first, second), (second, first))]
    return float(np.sqrt(low[0] * low[1] / (low[2] * low[3])))


@dataclass(frozen=True)
class SoftTissueSquares:
    """The 10 mm squares of a slice that lie in soft tissue."""

    side: int
    whole: NDArray[np.bool_]
    """Which of the squares, in rows and columns."""
    pixel_mm: float

    @property
    def enough(self) -> bool:
        """Whether there are as many as a level of noise needs."""
        return int(np.count_nonzero(self.whole)) >= 8

    def fine_sd(self, image_hu: NDArray[np.floating]) -> NDArray[np.float32]:
        """SD above a Gaussian of 1 mm in each square: anatomy has little power there. Shape: (y, x) → (square,)."""
        image = np.asarray(image_hu, dtype=np.float32)
        fine = image - ndimage.gaussian_filter(image, 1 / self.pixel_mm)
        return to_blocks(fine, self.side)[self.whole].std(axis=(-2, -1))

    def noise(self, image_hu: NDArray[np.floating]) -> float:
        """`soft_tissue_noise` of an image of this anatomy, HU. Shape: (y, x)."""
        return float(np.quantile(self.fine_sd(image_hu), 0.25)) if self.enough else float("nan")


def soft_tissue_squares(anatomy_hu: NDArray[np.floating], *, pixel_mm: float) -> SoftTissueSquares:
    """Find the squares of soft tissue. Shape: (y, x)."""
    side, soft = max(8, round(10 / pixel_mm)), soft_tissue(anatomy_hu, pixel_mm=pixel_mm)
    return SoftTissueSquares(side, to_blocks(soft, side).mean(axis=(-2, -1)) > 0.98, pixel_mm)


def soft_tissue(anatomy_hu: NDArray[np.floating], *, pixel_mm: float) -> NDArray[np.bool_]:
    """Where a slice, smoothed by 3 mm, has −20 to 250 HU. Shape: (y, x)."""
    smooth = ndimage.gaussian_filter(np.asarray(anatomy_hu, dtype=np.float32), 3 / pixel_mm)
    return (smooth > -20) & (smooth < 250)


def soft_tissue_noise(image_hu: NDArray[np.floating], anatomy_hu: NDArray[np.floating], *, pixel_mm: float) -> float:
    """High-pass noise SD in HU of an image where the anatomy is soft tissue; NaN if there are fewer than 8 squares of it.

    The lower quartile of `SoftTissueSquares.fine_sd`: a square with an edge in it does not count. Compare it only with itself.
    """
    return soft_tissue_squares(anatomy_hu, pixel_mm=pixel_mm).noise(image_hu)


def without_padding(volume: CTVolume, index: int) -> NDArray[np.float32]:
    """One slice with air where the reconstruction ends. Shape: (y, x)."""
    return np.where(volume.padding[index], np.float32(AIR_HU), volume.hu[index])
