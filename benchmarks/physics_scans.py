"""Scans of analytic phantoms for the physics page: exact line integrals in, images and noise images out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from finegrain.hu import MU_WATER_PER_MM
from finegrain.simulate.dose import BOWTIES, COUNT_FLOOR, Exposure, measure
from finegrain.simulate.fbp import ReconKernel, filtered_backprojection, reconstruct_hu
from finegrain.simulate.geometry import FanBeam, ParallelBeam
from finegrain.simulate.phantom import Ellipse, EllipsePhantom, insert_phantom
from finegrain.simulate.projector import FanProjector, Projector

HU_PER_MU = 1000 / MU_WATER_PER_MM
Array = NDArray[np.floating]


class Bench:
    """An image grid, and a parallel beam that covers the object also where the images show its middle only.

    Args:
        size: rows and columns of the images.
        pixel_mm: pixel size.
        field_mm: diameter that the beam covers; that of the images if 0.
        fan: the scanner.
    """

    def __init__(self, *, size: int = 512, pixel_mm: float = 0.7, field_mm: float = 0.0, fan: FanBeam | None = None) -> None:
        across = max(size, int(np.ceil(field_mm / pixel_mm)))
        self.beam = ParallelBeam.covering(size=across, pixel_mm=pixel_mm, fan=fan)
        self.projector = Projector(self.beam, size=size, pixel_mm=pixel_mm)
        self.size, self.pixel_mm = size, pixel_mm
        self.axis_mm = (np.arange(size) - size // 2) * pixel_mm

    def radius(self, centre_mm: tuple[float, float] = (0.0, 0.0)) -> Array:
        """Distance of each pixel from a point (x, y). Shape: (y, x)."""
        return np.hypot(self.axis_mm[None, :] - centre_mm[0], self.axis_mm[:, None] - centre_mm[1])

    def exact(self, phantom: EllipsePhantom) -> Array:
        """Analytic line integrals. Shape: (view, detector)."""
        return phantom.line_integral(self.beam.detector_positions_mm[None], self.beam.angles_rad[:, None]).astype(np.float32)

    def image(self, sinogram: Array, kernel: ReconKernel) -> Array:
        """Line integrals → HU."""
        return reconstruct_hu(sinogram, self.projector, kernel=kernel)

    def difference(self, sinogram: Array, kernel: ReconKernel) -> Array:
        """What is added to line integrals, as what is added to HU."""
        return filtered_backprojection(sinogram, self.projector, kernel=kernel) * HU_PER_MU

    def errors(self, sinogram: Array, exposure: Exposure, *, dose: float = 1.0, n: int = 1, seed: int = 0) -> Iterator[Array]:
        """Measured minus true line integrals of n scans."""
        generator = np.random.default_rng(seed)
        for _ in range(n):
            measured = measure(sinogram, self.beam, exposure, dose_fraction=dose, generator=generator)
            yield measured.line_integrals - sinogram

    def noise(
        self, sinogram: Array, exposure: Exposure, kernel: ReconKernel, *, dose: float = 1.0, n: int = 1, seed: int = 0
    ) -> Array:
        """Noise images in HU of n scans. Shape: (n, y, x)."""
        errors = self.errors(sinogram, exposure, dose=dose, n=n, seed=seed)
        return np.stack([self.difference(error, kernel) for error in errors])

    def squares(self, images: Array, side: int, *, within_mm: float) -> Array:
        """Squares of `side` pixels side by side in the middle square of 2 · within_mm. Shape: (n, y, x) → (m, side, side)."""
        half = int(within_mm / self.pixel_mm / side) * side
        middle = images[..., self.size // 2 - half : self.size // 2 + half, self.size // 2 - half : self.size // 2 + half]
        rows = middle.reshape(-1, 2 * half // side, side, 2 * half // side, side)
        return rows.transpose(0, 1, 3, 2, 4).reshape(-1, side, side)


class FanBench:
    """A scanner simulated ray by ray on its own fan: exact fan line integrals, photons of each ray, rebinning, FBP."""

    def __init__(self, fan: FanBeam, *, size: int = 512, pixel_mm: float = 0.7) -> None:
        self.fan = fan
        self.projector = FanProjector(fan, size=size, pixel_mm=pixel_mm)

    def exact(self, phantom: EllipsePhantom) -> Array:
        """Analytic line integrals from source to detector element. Shape: (view, channel)."""
        gamma = self.fan.channel_angles_rad[None, :]
        theta = self.fan.view_angles_rad[:, None] - gamma
        return phantom.line_integral(self.fan.source_iso_mm * np.sin(gamma), theta).astype(np.float32)

    def errors(self, sinogram: Array, exposure: Exposure, *, dose: float = 1.0, n: int = 1, seed: int = 0) -> Iterator[Array]:
        """Measured minus true line integrals of n scans at fixed tube current, rebinned to the parallel grid."""
        generator = np.random.default_rng(seed)
        air = exposure.photons * dose * BOWTIES[exposure.bowtie](self.fan.channel_angles_rad)[None, :]
        for _ in range(n):
            counts = generator.poisson(air * np.exp(-sinogram.astype(np.float64)))
            counts = counts + exposure.electronic_noise * generator.standard_normal(sinogram.shape)
            yield self.projector.rebin(-np.log(np.maximum(counts, COUNT_FLOOR) / air) - sinogram)

    def noise(
        self, sinogram: Array, exposure: Exposure, kernel: ReconKernel, *, dose: float = 1.0, n: int = 1, seed: int = 0
    ) -> Array:
        """Noise images in HU of n scans. Shape: (n, y, x)."""
        errors = self.errors(sinogram, exposure, dose=dose, n=n, seed=seed)
        images = [filtered_backprojection(error, self.projector.parallel, kernel=kernel) for error in errors]
        return np.stack(images) * HU_PER_MU


def water(diameter_mm: float) -> EllipsePhantom:
    """A water disc in air."""
    return insert_phantom((), diameter_mm=diameter_mm)


def body(width_mm: float, height_mm: float, *more: Ellipse, hu: float = 0.0) -> EllipsePhantom:
    """An elliptical body, and what is added to it."""
    return EllipsePhantom((Ellipse((0.0, 0.0), (width_mm / 2, height_mm / 2), 0.0, 1000.0 + hu), *more))


def rms(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt((np.asarray(values, dtype=np.float64) ** 2).mean()))


def sd(images: Array, mask: Array) -> float:
    """Root of the mean variance inside a mask. Shape: (n, y, x), (y, x)."""
    return float(np.sqrt(np.mean([image[mask].var(dtype=np.float64) for image in images])))


def profile(image: Array, radius_mm: Array, edges_mm: Array) -> Array:
    """Mean in rings. Shape: (y, x), (y, x), (ring + 1,) → (ring,)."""
    ring = np.digitize(radius_mm.ravel(), edges_mm) - 1
    inside = (ring >= 0) & (ring < len(edges_mm) - 1)
    n = np.bincount(ring[inside], minlength=len(edges_mm) - 1)
    return np.bincount(ring[inside], image.ravel()[inside], len(edges_mm) - 1) / np.maximum(n, 1)
