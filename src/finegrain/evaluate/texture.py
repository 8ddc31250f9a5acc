"""Texture: where it is, how much of its high-band energy is kept, how much of that is true, and how it would look.

Every region is found on the reference alone, so that no method can move the ground on which it is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.frequency import DCT_BLOCK, Band, block_dct

GRID_OFFSETS = ((0, 0), (4, 4), (0, 4), (4, 0))
"""Block grids (row, column) that every band metric is pooled over: one 8 × 8 grid alone is off by up to 16 %."""

MIN_BLOCK_COVERAGE = 0.5
"""Fraction of a DCT block that must lie in the roi for the block to count."""

BODY_HU = -400.0
TABLE_MM = 4.0
EDGE_SIGMA_MM = 2.5
EDGE_HU_PER_MM = 35.0
EDGE_MARGIN_MM = 4.0
NOISE_QUANTILE = 0.25
TEXTURE_FACTOR = 1.6
UNIFORM_FACTOR = 1.3
"""These eight are ours, chosen by eye on chest and abdomen scans of three scanners; `texture_rois` says what each does."""

TREND_SIGMA_MM = 4.0
GLCM_BIN_HU = 20.0
GLCM_SPAN_HU = 400.0
LOCAL_SD_PIXELS = 7


@dataclass(frozen=True)
class TextureROIs:
    """Where a texture metric looks, both masks of shape (y, x), disjoint, inside `body`."""

    fine_texture: NDArray[np.bool_]
    uniform: NDArray[np.bool_]
    body: NDArray[np.bool_]


def body_mask(hu: NDArray) -> NDArray[np.bool_]:
    """The patient in a slice, lungs included, table and air left out; all false where there is no body.

    Threshold, opening (a table top is thinner than a body), the largest component and those at least a third of its
    size (two legs), holes filled.

    Shape: hu (y, x) → (y, x).
    """
    solid = ndimage.gaussian_filter(np.asarray(hu, dtype=np.float64), 1.0) > BODY_HU
    core = ndimage.binary_opening(np.pad(solid, 8, mode="edge"), _disk(5))[8:-8, 8:-8]
    labels, n_components = ndimage.label(core)
    if n_components == 0:
        return np.zeros(solid.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(np.isin(labels, np.flatnonzero(sizes >= sizes.max() / 3)))


def _disk(radius: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return y**2 + x**2 <= radius**2


def local_band_energy(hu: NDArray, *, pixel_mm: float, band: Band) -> NDArray[np.float64]:
    """Energy of the band per pixel, in HU², in the blocks around each pixel. Shape: (y, x) → (y, x)."""
    mask = band.mask(DCT_BLOCK, pixel_mm=pixel_mm)
    total, count = np.zeros(hu.shape), np.zeros(hu.shape)
    for row, column in GRID_OFFSETS:
        energy = (block_dct(hu, offset=(row, column))[..., mask] ** 2).sum(axis=-1) / DCT_BLOCK**2
        spread = np.kron(energy, np.ones((DCT_BLOCK, DCT_BLOCK)))
        place = np.s_[row : row + spread.shape[0], column : column + spread.shape[1]]
        total[place] += spread
        count[place] += 1
    return total / np.maximum(count, 1)


def strong_edges(hu, *, pixel_mm):
    gradient = ndimage.gaussian_gradient_magnitude(hu, EDGE_SIGMA_MM / pixel_mm) / pixel_mm
    return ndimage.distance_transform_edt(gradient <= EDGE_HU_PER_MM) * pixel_mm <= EDGE_MARGIN_MM


def expected_noise_energy(log_energy, where):
    y, x = np.indices(log_energy.shape)
    y = 2 * y / log_energy.shape[0] - 1
    x = 2 * x / log_energy.shape[1] - 1
    terms = np.stack([x**i * y**j for i in range(3) for j in range(3 - i)], -1)
    a, b = terms[where][::7], log_energy[where][::7]
    w = np.ones(len(b))
    for _ in range(30):
        c = np.linalg.lstsq(a * np.sqrt(w)[:, None], b * np.sqrt(w), rcond=None)[0]
        r = b - a @ c
        w = np.where(r > 0, NOISE_QUANTILE, 1 - NOISE_QUANTILE) / np.maximum(np.abs(r), 0.02)
    return np.exp(terms @ c)


def texture_rois(reference_hu, *, pixel_mm, band):
    hu = np.maximum(np.asarray(reference_hu, dtype=np.float64), -1024)
    body = body_mask(hu)
    calm = body & ~strong_edges(hu, pixel_mm=pixel_mm) & (hu > -960) 
    energy = ndimage.uniform_filter(local_band_energy(hu, pixel_mm=pixel_mm, band=band), 8)
    noise = expected_noise_energy(np.log(energy + 1e-6), calm & (np.abs(ndimage.gaussian_filter(hu, 2)) < 150))
    from skimage.morphology import remove_small_objects as rs; return TextureROIs(rs(calm & (energy > TEXTURE_FACTOR * noise), max_size=63), calm & (energy < UNIFORM_FACTOR * noise), body), noise, energy
