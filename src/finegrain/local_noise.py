"""The noise of a CT slice around each block of 8 × 8 pixels, read above 0.4 Nyquist, where anatomy is sparse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.frequency import DCT_BLOCK, Band, block_dct, to_blocks

DETAIL = Band(0.4, 1.5)
"""Where the noise is read: above 0.4 Nyquist, where anatomy is sparse."""
NOISE_BLOCKS = 9
"""Blocks along a side of the neighbourhood whose median is the local noise; a default, taken from nowhere."""
LOWEST_HU = 0.1
"""What is below this counts as this: in images without noise, ratios must stay finite."""
MEDIAN_OF_NORMAL = 0.6745
"""Median of |x| for a normal x of SD 1."""


def local_noise_hu(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Noise around each block: the SD of white noise that has as much above 0.4 Nyquist, in HU.

    The median over the coefficients of a block does not see an edge that fills a few of them, and the median over 9 × 9 blocks
    none that crosses less than half of these; what comes out is smooth. Shape: (y, x) → (block_y, block_x).
    """
    of_block = np.median(np.abs(coefficients_of_blocks(image)[..., DETAIL.mask(DCT_BLOCK).ravel()]), axis=-1) / MEDIAN_OF_NORMAL
    around = ndimage.median_filter(np.log(np.maximum(of_block, LOWEST_HU)), NOISE_BLOCKS, mode="nearest")
    return np.exp(ndimage.gaussian_filter(around, NOISE_BLOCKS / 4, mode="nearest"))


def median_noise_hu(image: NDArray[np.floating], body: NDArray[np.bool_]) -> float | None:
    """Noise of an image in the body, see `local_noise_hu`; None if there is no body. Shape: (y, x) each."""
    inside = local_noise_hu(image)[covered_blocks(body)]
    return float(np.median(inside)) if inside.size else None


def coefficients_of_blocks(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Block-DCT coefficients, a cut block filled up. Shape: (y, x) → (block_y, block_x, coefficient)."""
    fill = tuple((0, -length % DCT_BLOCK) for length in image.shape)
    found = block_dct(np.pad(np.asarray(image, dtype=np.float64), fill, mode="symmetric"))
    return found.reshape(*found.shape[:2], DCT_BLOCK**2)


def covered_blocks(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which blocks the body covers by half. Shape: (y, x) → (block_y, block_x), a cut block filled up."""
    fill = tuple((0, -length % DCT_BLOCK) for length in body.shape)
    return np.asarray(to_blocks(np.pad(body, fill, mode="symmetric")).mean(axis=(-2, -1)) >= 0.5)
