"""A pair made ready to be measured: what is body, what was reconstructed, and cells without noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.errors import DataError
from finegrain.hu import AIR_HU

FloatImage = NDArray[np.float32]

BODY_HU = -300.0
"""What is brighter may be body; the same as in `simulate.acquire`."""
LOWEST_HU, HIGHEST_HU = -1024.0, 3071.0
"""The 12-bit CT scale, on which pairs are stored."""
PADDING_HU = -1500.0
"""What is darker is padding (−2000, −2048, −3024); noise in air is not as dark."""
CELL_MM = 2.0
"""Side of the cells in which body, peaks and bias are found: their mean has hardly any noise. A default, taken from nowhere."""
TABLE_MM = 10.0
"""What is thinner than this is not body: the shells of a couch are (they measure 2 to 6 mm in the scans it was tried on)."""
SQUARES = 12
"""So many flat squares make a level of noise. A default, taken from nowhere."""
NOT_AIR_HU = -900.0
"""Darker pixels are air: noise that ends at −1024 HU brightens them in the low dose, and a cut through them is none."""


@dataclass(frozen=True)
class View:
    """A pair made ready: padding is air, and what is body, edge and outside is known."""

    low: FloatImage
    normal: FloatImage
    difference: FloatImage
    valid: NDArray[np.bool_]
    """Reconstructed in both."""
    body: NDArray[np.bool_]
    cell: int
    """Pixels of a cell's side."""
    cell_body: NDArray[np.bool_]
    pixel_mm: float

    @classmethod
    def make(cls, low: NDArray, normal: NDArray, *, pixel_mm: float, padding: NDArray[np.bool_] | None) -> View:
        if low.shape != normal.shape or low.ndim != 2 or min(low.shape) < 64:
            raise DataError(f"a pair needs two images of one shape (y, x) of 64 pixels or more, got {low.shape} and {normal.shape}")
        if not 0 < pixel_mm < math.inf:
            raise DataError(f"expected a positive pixel size, got {pixel_mm} mm")
        low, normal = low.astype(np.float32), normal.astype(np.float32)
        valid = (low > PADDING_HU) & (normal > PADDING_HU)  # false for NaN
        if padding is not None:
            valid &= ~padding
        low, normal = (np.where(valid, np.clip(one, LOWEST_HU, HIGHEST_HU), np.float32(AIR_HU)) for one in (low, normal))
        cell = max(1, round(CELL_MM / pixel_mm))
        cell_body = _body(cell_means(normal, cell), cell * pixel_mm)
        return cls(low, normal, low - normal, valid, pixels_of(cell_body, cell, normal.shape), cell, cell_body, pixel_mm)


def cell_means(image: NDArray, side: int) -> FloatImage:
    """Means of side × side squares; a rest at the edges is left out. Shape: (y, x) → (row, column)."""
    rows, columns = (n // side for n in image.shape)
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns * side)
    flat = cut.mean(axis=1, dtype=np.float32)  # rows first: twice as fast as both at once
    return np.asarray(flat.reshape(rows, columns, side).mean(axis=2))


def pixels_of(cells: NDArray[np.bool_], side: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels of cells; those of no cell are false."""
    pixels = np.zeros(shape, dtype=bool)
    whole = np.repeat(np.repeat(cells, side, axis=0), side, axis=1)
    pixels[: whole.shape[0], : whole.shape[1]] = whole
    return pixels


def thick_parts(cells: NDArray[np.bool_], cell_mm: float) -> NDArray[np.bool_]:
    """What holds a disc of `TABLE_MM`."""
    n = max(1, round(TABLE_MM / cell_mm / 2))
    y, x = np.ogrid[-n : n + 1, -n : n + 1]
    return np.asarray(ndimage.binary_opening(cells, structure=y**2 + x**2 <= n**2))


def _body(cells_hu: FloatImage, cell_mm: float) -> NDArray[np.bool_]:
    """The body with all that it encloses; couch and cables are too thin to count. Shape: (row, column)."""
    thick = thick_parts(cells_hu > BODY_HU, cell_mm)
    labels, n_labels = ndimage.label(thick)
    if n_labels == 0:
        return thick
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    parts = np.flatnonzero(sizes >= 0.1 * sizes.max())  # arms and legs are parts, too
    return np.asarray(ndimage.binary_fill_holes(np.isin(labels, parts)))
