"""Lesions that are put into reconstructed images, and where: the signals for which d′ is measured.

A lesion has a soft-edged round profile of known HU and mm, blurred as the scanner would. Its places are found on the reference
alone, so that every method is asked about the same ones; the image without the lesion at the same place is its counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from finegrain.errors import DataError
from finegrain.evaluate.regions import texture_rois, tissue_rois
from finegrain.frequency import Band

Transfer = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""MTF or TTF: frequency in cycles/mm → transfer, 1 at zero."""

FINE = 8
"""Points per pixel along either axis on which a profile is drawn before it is blurred or averaged."""

EDGE_MARGIN_MM = 2.0
"""Uniform tissue that a lesion wants around it. Ours."""

UNIFORM_SHARE = 0.9
"""Share of a place that must be uniform; all of it must be soft tissue. Ours."""

ROI_DIAMETERS, SMALLEST_ROI_MM = 3.0, 24.0
"""Side of the ROI around a lesion: three diameters, and never so small that ten dense
difference-of-Gaussians channels become one another (they do on 19 mm, 23 mm suffice). Ours."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A round lesion of contrast C·(1 − (r/R)²)^n, R half the diameter: a disc for n = 0, dome-like for 1, blurred for more.

    The slice of a ball with this profile is such a lesion too. Source: Solomon and Samei 2014, Phys Med Biol 59:6637.

    >>> round(Lesion(diameter_mm=6.0, contrast_hu=-20.0).integral_hu_mm2, 1)
    -282.7
    """

    diameter_mm: float
    contrast_hu: float
    """HU at the centre, before blur, on top of the tissue; negative is darker."""
    exponent: float = 1.0
    """n; the default is ours."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.diameter_mm) and self.diameter_mm > 0 and np.isfinite(self.contrast_hu)):
            raise DataError(
                f"expected a diameter above 0 mm and a finite contrast, got {self.diameter_mm} mm, {self.contrast_hu} HU"
            )
        if not 0 <= self.exponent <= 10:
            raise DataError(f"expected an edge exponent in [0, 10], got {self.exponent}")

    @property
    def integral_hu_mm2(self) -> float:
        """Integral over the plane, C·πR²/(n + 1); blur does not change it."""
        return self.contrast_hu * np.pi * (self.diameter_mm / 2) ** 2 / (self.exponent + 1)

    def profile(self, radius_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Contrast in HU at distances from the centre, without blur."""
        inside = 1 - np.square(np.asarray(radius_mm, dtype=np.float64) / (self.diameter_mm / 2))
        return self.contrast_hu * np.where(inside > 0, np.maximum(inside, 0) ** self.exponent, 0.0)

    def image(
        self, size: int, *, pixel_mm: float, offset: tuple[float, float] = (0.0, 0.0), mtf: Transfer | None = None
    ) -> NDArray[np.float64]:
        """The lesion on zero background, its centre on pixel size // 2 plus an offset in pixels.

        With an MTF the profile is blurred by it and read at the pixels' centres, for an MTF of a scanner holds whatever blurs;
        without one each pixel holds the profile's mean over its area.

        Args:
            offset: (row, column) in pixels.
            mtf: transfer of the scanner, e.g. `gaussian_transfer`.

        Shape: (y, x). Raises: DataError if the lesion does not fit in.
        """
        reach = self.diameter_mm / 2 / pixel_mm + max(abs(offset[0]), abs(offset[1]))
        if reach > size // 2:
            raise DataError(f"a lesion of {self.diameter_mm} mm does not fit into {size} pixels of {pixel_mm} mm at {offset}")
        # Eight points per pixel: their middles to average over a pixel, or with one on its centre to be read there.
        shift = 0.5 if mtf is None else 0.0
        points = (np.arange(size * FINE) + shift) / FINE - 0.5 - size // 2
        y, x = (points - offset[0]) * pixel_mm, (points - offset[1]) * pixel_mm
        fine = self.profile(np.hypot(y[:, None], x[None, :]))
        total = fine.sum() * (pixel_mm / FINE) ** 2
        if total != 0:
            fine *= self.integral_hu_mm2 / total  # a sharp small disc misses a few of its edge's points
        if mtf is None:
            return fine.reshape(size, FINE, size, FINE).mean(axis=(1, 3))
        f = fft.fftfreq(size * FINE, pixel_mm / FINE)
        blurred = fft.ifft2(fft.fft2(fine) * mtf(np.hypot(f[:, None], f[None, :]))).real
        return blurred[FINE // 2 :: FINE, FINE // 2 :: FINE]


STUDY_LESIONS = (
    Lesion(diameter_mm=3.0, contrast_hu=-40.0),
    Lesion(diameter_mm=6.0, contrast_hu=-20.0),
    Lesion(diameter_mm=12.0, contrast_hu=-8.0),
)
"""Three low-contrast lesions of liver type, ours. In simulated B30f noise of 20 HU (32 cm of water, 0.7 mm pixels) with an MTF of
one half at 0.35 cycles/mm the ideal observer's d′ is 2.1, 2.8 and 3.0; it falls as the noise rises. At −15 HU the largest would
have 5.7: too easy to tell methods apart by their AUC."""


def gaussian_transfer(f50_per_mm: float) -> Transfer:
    """A Gaussian MTF that falls to one half at a frequency.

    >>> gaussian_transfer(0.4)(np.array([0.0, 0.4])).tolist()
    [1.0, 0.5]
    """
    if not f50_per_mm > 0:
        raise DataError(f"expected a frequency above 0 cycles/mm at which the MTF is one half, got {f50_per_mm}")
    return lambda frequency: np.exp2(-np.square(frequency / f50_per_mm))


def measured_transfer(frequency_per_mm: Sequence[float], transfer: Sequence[float]) -> Transfer:
    """A measured radial MTF or TTF, linear between its points, 1 at zero and 0 beyond the last.

    Raises: DataError if the frequencies do not rise from 0 or more, or the lengths differ.
    """
    f, t = np.asarray(frequency_per_mm, dtype=np.float64), np.asarray(transfer, dtype=np.float64)
    if f.shape != t.shape or f.ndim != 1 or len(f) < 2 or f[0] < 0 or not (np.diff(f) > 0).all() or not np.isfinite(t).all():
        raise DataError(f"expected rising frequencies and as many finite transfers, got shapes {f.shape} and {t.shape}")
    return lambda frequency: np.interp(frequency, f, t, left=1.0, right=0.0)


@dataclass(frozen=True)
class Place:
    """Where a lesion's centre lies, in pixels: row and column, whole numbers at the pixels' centres."""

    row: float
    column: float

    @property
    def pixel(self) -> tuple[int, int]:
        """The nearest pixel."""
        return round(self.row), round(self.column)

    @property
    def offset(self) -> tuple[float, float]:
        """From the nearest pixel to the centre, within half a pixel."""
        return self.row - self.pixel[0], self.column - self.pixel[1]


def insert(hu: NDArray[np.floating], lesion: Lesion, centre: Place, *, pixel_mm: float, mtf: Transfer | None = None) -> NDArray:
    """A copy of a slice with the lesion added at a place.

    Shape: hu (y, x) → (y, x), of the same dtype if that is floating. Raises: DataError if the lesion's centre lies outside.
    """
    row, column = centre.pixel
    if not (0 <= row < hu.shape[0] and 0 <= column < hu.shape[1]):
        raise DataError(f"a lesion's centre at row {row}, column {column} lies outside a slice of {hu.shape}")
    half = roi_size(lesion.diameter_mm, pixel_mm) // 2
    patch = lesion.image(2 * half + 1, pixel_mm=pixel_mm, offset=centre.offset, mtf=mtf)
    out = np.array(hu, dtype=hu.dtype if np.issubdtype(hu.dtype, np.floating) else np.float64)
    top, left = max(row - half, 0), max(column - half, 0)
    there = out[top : row + half + 1, left : column + half + 1]
    there += patch[top - row + half :, left - column + half :][: there.shape[0], : there.shape[1]]
    return out


def roi_size(diameter_mm: float, pixel_mm: float) -> int:
    """Pixels along either side of the ROI around a lesion: odd, so that its middle is a pixel."""
    return 2 * int(np.ceil(max(ROI_DIAMETERS * diameter_mm, SMALLEST_ROI_MM) / pixel_mm / 2)) + 1


def lesion_places(
    reference_hu: NDArray[np.floating],
    *,
    pixel_mm: float,
    diameter_mm: float,
    n: int,
    min_spacing_mm: float | None = None,
    seed: int = 0,
) -> tuple[Place, ...]:
    """Up to n places for a lesion in uniform soft tissue, found on the reference alone, each off the pixels' centres at random.

    A place is soft tissue throughout and uniform to nine tenths, both with a margin; its ROI lies in the slice. Fewer than n come
    back where there is no more room, none where there is none.

    Args:
        reference_hu: the normal-dose slice.
        min_spacing_mm: least distance of two centres; by default such that no lesion reaches into another's ROI.
        seed: of the choice among all possible places and of the offsets.

    Shape: reference_hu (y, x).
    """
    if n < 1 or not (pixel_mm > 0 and diameter_mm > 0):
        raise DataError(f"expected one place or more, and sizes above 0 mm, got {n}, {pixel_mm} mm, {diameter_mm} mm")
    size = roi_size(diameter_mm, pixel_mm)
    spacing_mm = np.sqrt(2) * (size // 2 + 1) * pixel_mm + diameter_mm / 2 if min_spacing_mm is None else min_spacing_mm
    if spacing_mm < diameter_mm:
        raise DataError(f"lesions of {diameter_mm} mm overlap at a spacing of {spacing_mm} mm")
    uniform = texture_rois(reference_hu, pixel_mm=pixel_mm, band=Band()).uniform
    soft = tissue_rois(reference_hu)["soft"]
    reach = diameter_mm / 2 + EDGE_MARGIN_MM
    share = ndimage.uniform_filter(uniform.astype(np.float64), 2 * int(np.ceil(reach / pixel_mm)) + 1)
    possible = (ndimage.distance_transform_edt(np.pad(soft, 1))[1:-1, 1:-1] * pixel_mm > reach + pixel_mm) & (
        share >= UNIFORM_SHARE
    )
    half = size // 2
    inside = np.zeros_like(possible)
    inside[half : -half or None, half : -half or None] = True
    rng = np.random.default_rng(seed)
    candidates = rng.permutation(np.argwhere(possible & inside))
    found: list[Place] = []
    while len(candidates) and len(found) < n:
        row, column = (int(c) for c in candidates[0])
        jitter = rng.uniform(-0.5, 0.5, 2)
        found.append(Place(row + float(jitter[0]), column + float(jitter[1])))
        apart = np.hypot(candidates[:, 0] - row, candidates[:, 1] - column) * pixel_mm
        # Two offsets can bring two centres nearer by one pixel along either axis.
        candidates = candidates[apart >= spacing_mm + np.sqrt(2) * pixel_mm]
    return tuple(found)


def rois_at(hu: NDArray[np.floating], places: Sequence[Place], *, size: int) -> NDArray[np.float64]:
    """Square ROIs around the places' nearest pixels, which come to lie on pixel size // 2.

    Shape: hu (y, x) → (n, size, size). Raises: DataError if a ROI sticks out of the slice.
    """
    half = size // 2
    found = []
    for place in places:
        top, left = place.pixel[0] - half, place.pixel[1] - half
        if top < 0 or left < 0 or top + size > hu.shape[0] or left + size > hu.shape[1]:
            raise DataError(f"a ROI of {size} pixels at row {place.pixel[0]}, column {place.pixel[1]} leaves a slice of {hu.shape}")
        found.append(np.asarray(hu[top : top + size, left : left + size], dtype=np.float64))
    return np.stack(found) if found else np.empty((0, size, size))
