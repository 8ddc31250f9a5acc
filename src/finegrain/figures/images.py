"""Images for eyes: HU through a display window to grey, and the places worth zooming into."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from finegrain.evaluate.regions import body_mask
from finegrain.hu import AIR_HU


@dataclass(frozen=True)
class DisplayWindow:
    """What the eye is shown: HU from `centre − width/2` (black) to `centre + width/2` (white)."""

    name: str
    centre: float
    width: float

    def to_gray(self, hu: NDArray[np.floating]) -> NDArray[np.uint8]:
        """An image in HU as 8-bit grey, shape kept."""
        unit = (np.asarray(hu, dtype=np.float32) - (self.centre - self.width / 2)) / self.width
        return (np.nan_to_num(unit.clip(0, 1)) * 255).round().astype(np.uint8)


SOFT_WINDOW = DisplayWindow("soft tissue", 40, 400)
LUNG_WINDOW = DisplayWindow("lung", -600, 1500)
BONE_WINDOW = DisplayWindow("bone", 450, 1500)


def difference_window(noise_hu: NDArray[np.floating]) -> DisplayWindow:
    """A window centred at 0 HU, three standard deviations of the noise to each side, rounded to 10 HU."""
    half = max(10.0, round(3 * float(np.nanstd(noise_hu)) / 10) * 10)
    return DisplayWindow("difference", 0, 2 * half)


def png_bytes(gray: NDArray[np.uint8]) -> bytes:
    """An 8-bit grey image, shape (y, x), as a lossless PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_uri(gray: NDArray[np.uint8]) -> str:
    """An 8-bit grey image as a `data:` address, for a page that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(gray)).decode()


def resized(hu: NDArray[np.floating], factor: float) -> NDArray[np.float32]:
    """An image enlarged by bicubic interpolation, in HU and before any window. Shape: (y, x) → (factor y, factor x)."""
    rows, columns = (max(1, round(length * factor)) for length in hu.shape)
    image = Image.fromarray(np.asarray(hu, dtype=np.float32))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC), dtype=np.float32)


@dataclass(frozen=True)
class CropPlace:
    """A square of an image, in pixels, and the window that suits what it shows."""

    name: str
    row: int
    column: int
    side: int
    window: DisplayWindow
    score: float

    def of(self, image: NDArray) -> NDArray:
        """The pixels of the square. Shape: (y, x) → (side, side)."""
        return image[self.row : self.row + self.side, self.column : self.column + self.side]


@dataclass(frozen=True)
class _Tissue:
    name: str
    window: DisplayWindow
    hu: tuple[float, float]
    smooth_mm: float
    grain_mm: tuple[float, float]
    fraction: float


_TISSUES = (
    _Tissue("lung vessels", LUNG_WINDOW, (-980, -500), 5.0, (0.9, 4.0), 0.97),
    _Tissue("soft tissue", SOFT_WINDOW, (0, 250), 2.0, (2.0, 7.0), 0.95),
    _Tissue("bone", BONE_WINDOW, (220, 3000), 1.0, (0.9, 4.0), 0.15),
)
"""Name, window, HU of the smoothed tissue, smoothing, structure sizes that score, share of the square that must be tissue. Ours."""


def find_crops(reference_hu: NDArray[np.floating], *, pixel_mm: float, side: int = 64) -> list[CropPlace]:
    """The square with the most fine structure in lung, in soft tissue and in bone, found on the reference alone.

    Structure is the energy between two Gaussian scales, coarse enough to leave most noise out. A tissue that fills no
    square is left out of the list.

    Shape: reference_hu (y, x); side in pixels.
    """
    hu = np.clip(np.nan_to_num(np.asarray(reference_hu, dtype=np.float32), nan=AIR_HU), AIR_HU, 2000)
    side = min(side, min(hu.shape) // 2)
    body = body_mask(hu)
    found = (_best_square(hu, body, tissue, pixel_mm=pixel_mm, side=side) for tissue in _TISSUES)
    return [place for place in found if place is not None]


def _best_square(hu: NDArray, body: NDArray[np.bool_], tissue: _Tissue, *, pixel_mm: float, side: int) -> CropPlace | None:
    smooth = ndimage.gaussian_filter(hu, tissue.smooth_mm / pixel_mm)
    where = body & (smooth > tissue.hu[0]) & (smooth < tissue.hu[1])
    fine, coarse = (ndimage.gaussian_filter(hu, size / pixel_mm) for size in tissue.grain_mm)
    share = _square_means(where.astype(np.float32), side)
    score = np.where(share >= tissue.fraction, _square_means((fine - coarse) ** 2 * where, side), 0)
    row, column = np.unravel_index(int(score.argmax()), score.shape)
    if score[row, column] <= 0:
        return None
    return CropPlace(tissue.name, int(row), int(column), side, tissue.window, float(score[row, column]))


def _square_means(image: NDArray, side: int) -> NDArray[np.float64]:
    """Mean of each square, indexed by its first pixel. Shape: (y, x) → (y − side + 1, x − side + 1)."""
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    total[1:, 1:] = image.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return sums / side**2


def body_box(images_hu: Sequence[NDArray[np.floating]], *, margin: int = 12) -> tuple[slice, slice]:
    """Rows and columns that hold the body in every one of the images, with a margin in pixels; all if there is no body."""
    body = np.logical_or.reduce([body_mask(np.nan_to_num(np.asarray(hu), nan=AIR_HU)) for hu in images_hu])
    if not body.any():
        return slice(0, body.shape[0]), slice(0, body.shape[1])
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    return _widened(rows, margin, body.shape[0]), _widened(columns, margin, body.shape[1])


def _widened(indices: NDArray, margin: int, length: int) -> slice:
    return slice(max(0, int(indices[0]) - margin), min(length, int(indices[-1]) + 1 + margin))


@dataclass(frozen=True)
class CropView:
    """The same small place in the images of all methods.

    Attributes:
        name: what it shows.
        pixel_mm: pixel size in mm.
        images: name → HU array (y, x), in the order of display, "normal dose" first.
        window: display window (centre, width) in HU; lung or soft tissue by the median HU if None.
    """

    name: str
    pixel_mm: float
    images: Mapping[str, NDArray[np.floating]]
    window: tuple[float, float] | None = None

    def display_window(self) -> DisplayWindow:
        """The window that was asked for, or the one that suits the median HU."""
        if self.window is not None:
            return DisplayWindow("window", *self.window)
        reference = next(iter(self.images.values()))
        return LUNG_WINDOW if np.nanmedian(reference) < -300 else SOFT_WINDOW

    def errors(self) -> dict[str, NDArray[np.floating]]:
        """Each image but the reference, minus the reference, in HU."""
        names = list(self.images)
        return {name: self.images[name] - self.images[names[0]] for name in names[1:]}
