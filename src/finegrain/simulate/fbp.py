"""Filtered backprojection with the reconstruction kernels of real scanners, output in HU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from finegrain.errors import ConfigError, GeometryError
from finegrain.hu import mu_to_hu
from finegrain.scan.privacy import shown
from finegrain.simulate.geometry import check_grid
from finegrain.simulate.projector import Projector


@dataclass(frozen=True)
class ReconKernel:
    """A reconstruction kernel: the factor W(f) on the ramp, in cycles/mm at the isocentre, never relative to a grid.

    Attributes:
        name: as the scanner names it.
        frequency_per_mm: rising, from 0; W is zero above the last.
        transfer: W at these frequencies, W(0) = 1.
        origin: how W is known.
    """

    name: str
    frequency_per_mm: tuple[float, ...]
    transfer: tuple[float, ...]
    origin: str

    def __post_init__(self) -> None:
        f, w = self.frequency_per_mm, self.transfer
        if len(f) != len(w) or len(f) < 2 or f[0] != 0 or any(b <= a for a, b in pairwise(f)):
            raise ConfigError(f"kernel {self.name}: expected rising frequencies from 0 and one transfer value for each")
        if not np.isfinite((*f, *w)).all():
            raise ConfigError(f"kernel {self.name}: expected finite frequencies and transfer values, got {(*f, *w)}")
        if w[0] != 1:
            raise ConfigError(f"kernel {self.name}: W(0) must be 1 or HU change, got {w[0]}")

    @property
    def cutoff_per_mm(self) -> float:
        """The frequency above which nothing passes."""
        return self.frequency_per_mm[-1]

    @property
    def half_per_mm(self) -> float | None:
        """The lowest frequency in cycles/mm at which W has fallen to one half; None if it never does."""
        frequency = np.linspace(0, self.cutoff_per_mm, 2001)
        below = np.flatnonzero(self(frequency) <= 0.5)
        return float(frequency[below[0]]) if below.size else None

    def __call__(self, frequency_per_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """W(f), monotone cubic between the known points (Fritsch and Carlson 1980), flat at zero as an even function is."""
        f = np.concatenate(([-self.frequency_per_mm[1]], self.frequency_per_mm))
        w = np.concatenate(([self.transfer[1]], self.transfer))
        return np.where(frequency_per_mm <= self.cutoff_per_mm, PchipInterpolator(f, w, extrapolate=True)(frequency_per_mm), 0)


def hann_kernel(name: str, *, cutoff_per_mm: float) -> ReconKernel:
    """A Hann window that reaches zero at `cutoff_per_mm`."""
    f = np.linspace(0, cutoff_per_mm, 41)
    return ReconKernel(name, tuple(f), tuple(0.5 + 0.5 * np.cos(np.pi * f / cutoff_per_mm)), "Hann window")


_MEASURED_AT = (0.0, 0.125, 0.175, 0.225, 0.275, 0.325, 0.375, 0.425, 0.475, 0.525, 0.575, 0.625, 0.675)
_MEASURED_TISSUE = "shape above 0.2 cycles/mm measured, √(NPS(f)/f) in soft tissue"
_MEASURED = "measured on quarter-dose minus full-dose images: √(NPS(f)/f), refined once by simulating the same noise"

KERNELS: dict[str, ReconKernel] = {
    kernel.name: kernel
    for kernel in (
        ReconKernel(
            "B30f",
            (*_MEASURED_AT, 0.775),
            (1.0, 0.967, 0.894, 0.808, 0.708, 0.600, 0.500, 0.398, 0.302, 0.220, 0.151, 0.101, 0.063, 0.0),
            f"{_MEASURED}, 14 slices; last point extrapolated",
        ),
        ReconKernel(
            "D45f",
            (*_MEASURED_AT, 0.9, 1.2),
            (1.0, 0.957, 0.952, 0.930, 0.911, 0.888, 0.859, 0.832, 0.804, 0.775, 0.731, 0.673, 0.582, 0.29, 0.0),
            f"{_MEASURED}, 18 slices; above 0.7 cycles/mm extrapolated",
        ),
        ReconKernel(
            "B40f",
            (0.0, 0.125, 0.175, 0.225, 0.275, 0.325, 0.375, 0.425, 0.475, 0.525, 0.6, 0.7, 0.8, 0.9),
            (1.0, 0.96, 0.92, 0.87, 0.787, 0.700, 0.610, 0.523, 0.428, 0.343, 0.23, 0.12, 0.04, 0.0),
            f"{_MEASURED_TISSUE} of a Siemens Sensation 64 chest series",
        ),
        ReconKernel(
            "FC13",
            (0.0, 0.125, 0.175, 0.225, 0.275, 0.325, 0.375, 0.425, 0.475, 0.55, 0.65, 0.75),
            (1.0, 0.93, 0.83, 0.72, 0.533, 0.384, 0.282, 0.220, 0.173, 0.10, 0.04, 0.0),
            f"{_MEASURED_TISSUE} of a Toshiba Aquilion abdomen series",
        ),
        hann_kernel("hann-0.8", cutoff_per_mm=0.8),
        ReconKernel("ramp", (0.0, 100.0), (1.0, 1.0), "no window: the bare ramp"),
    )
}


def find_kernel(name: str) -> ReconKernel:
    """The kernel of that name, or in the file of that name if it ends in .yaml or .yml (see `kernel_fit`).

    Raises: ConfigError naming those there are.
    """
    if name.lower().endswith((".yaml", ".yml")):
        from finegrain.simulate.kernel_fit import load_kernel  # which imports this module

        return load_kernel(Path(name))
    try:
        return KERNELS[name]
    except KeyError:
        raise ConfigError(f"unknown reconstruction kernel {name!r}; known are {', '.join(sorted(KERNELS))}") from None


def kernel_of_header(stated: str) -> ReconKernel:
    """The kernel that a header's ConvolutionKernel names; never a file.

    Raises: ConfigError if it is not known.
    """
    kernel = KERNELS.get(stated) or KERNELS.get(stated.split("\\")[0])
    if kernel is None:
        why = f"the header's kernel {shown(stated)!r} is not known" if stated else "the scan names no reconstruction kernel"
        raise ConfigError(
            f"{why}; choose the nearest with --kernel ({', '.join(sorted(KERNELS))}), "
            "or measure the scanner's own with finegrain measure-kernel"
        )
    return kernel


def filtered_backprojection(sinogram: NDArray[np.floating], projector: Projector, *, kernel: ReconKernel) -> NDArray[np.float32]:
    """Attenuation in 1/mm (or whatever unit the line integrals were of, per mm) reconstructed from line integrals.

    The ramp is sampled in space, h(0) = 1/4, h(odd n) = −1/(π n)² (Kak and Slaney 1988, eq. 3.61), and the projections are
    padded to twice their length: sampling |f| itself would bias every CT number.

    Shape: sinogram (..., view, detector) → image (..., y, x).
    """
    beam = projector.beam
    if sinogram.shape[-2:] != (beam.n_views, beam.n_detector):
        raise GeometryError(f"expected a sinogram of {beam.n_views} views × {beam.n_detector} cells, got {sinogram.shape[-2:]}")
    n_fft = scipy.fft.next_fast_len(2 * beam.n_detector, real=True)
    frequency = scipy.fft.rfftfreq(n_fft, beam.detector_mm)
    frequency = frequency[frequency <= kernel.cutoff_per_mm]
    response = _ramp(n_fft)[: len(frequency)] * kernel(frequency) / beam.detector_mm
    return projector.filter_and_backproject(sinogram, response, n_fft)


def reconstruct_hu(sinogram: NDArray[np.floating], projector: Projector, *, kernel: ReconKernel) -> NDArray[np.float32]:
    """CT numbers in HU from line integrals of attenuation; air outside the reconstruction circle."""
    hu = mu_to_hu(filtered_backprojection(sinogram, projector, kernel=kernel)).astype(np.float32)
    return np.where(projector.circle, hu, np.float32(-1000))


def _ramp(n_fft: int) -> NDArray[np.float64]:
    distance = np.minimum(np.arange(n_fft), n_fft - np.arange(n_fft))
    response = np.zeros(n_fft)
    response[0] = 0.25
    odd = distance % 2 == 1
    response[odd] = -1 / (np.pi * distance[odd]) ** 2
    return scipy.fft.rfft(response).real


def resample_and_rekernel(
    hu: NDArray[np.floating],
    *,
    pixel_mm: float,
    new_pixel_mm: float,
    own: ReconKernel | None = None,
    target: ReconKernel | None = None,
    largest_gain: float = 1.5,
) -> tuple[NDArray[np.float32], float]:
    """A square slice on another pixel grid, as a softer kernel would have shown it: noise and anatomy together.

    Reconstruction is linear, so one kernel becomes another by the factor W_target / W_own on the spectrum of the image. A sharper
    kernel cannot be had: what a soft one has taken away is gone, so the gain is limited, and above the old Nyquist there is
    nothing. The size is rounded to even pixels, so the pixel size that comes out differs a little from the one asked for.

    Shape: (y, x) → (y', x'), and the new pixel size in mm.
    Raises: GeometryError for a slice that is not square, or pixels that are not positive or leave fewer than 4 of them.
    """
    if hu.shape[-2] != hu.shape[-1]:
        raise GeometryError(f"resampling needs square slices, got {hu.shape[-2]} × {hu.shape[-1]} pixels")
    size = hu.shape[-1]
    check_grid(size, pixel_mm)
    if not 0 < new_pixel_mm <= size * pixel_mm / 4:
        raise GeometryError(f"{size * pixel_mm:g} mm cannot be resampled to pixels of {new_pixel_mm} mm; take at least 4 pixels")
    new_size = 2 * round(size * pixel_mm / new_pixel_mm / 2)
    frequency = scipy.fft.fftfreq(size, pixel_mm)
    spectrum = scipy.fft.fft2(np.asarray(hu, dtype=np.float32))
    if own is not None and target is not None:
        radius = np.hypot(frequency[:, None], frequency[None, :])
        gain = target(radius) / np.maximum(own(radius), 1e-3)
        spectrum *= np.minimum(gain, largest_gain).astype(np.float32)
    kept = min(size, new_size)
    half = kept // 2
    moved = np.zeros((new_size, new_size), dtype=spectrum.dtype)
    # Without the Nyquist line, whose sign is lost on an even grid.
    low, high = slice(0, half), slice(-half + 1, None)
    for rows in (low, high):
        for columns in (low, high):
            moved[rows, columns] = spectrum[rows, columns]
    image = scipy.fft.ifft2(moved).real * (new_size / size) ** 2
    return image.astype(np.float32), size * pixel_mm / new_size
