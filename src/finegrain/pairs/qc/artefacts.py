"""What neither anatomy nor noise makes: lines, circles and the grid of a lossy compression."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.frequency import DCT_BLOCK, dct_matrix, nyquist_fraction, to_blocks
from finegrain.pairs.qc.view import SQUARES, FloatImage, View, cell_means


def measure_artefacts(view: View) -> dict[str, float]:
    """Lines and circles in D, and the grid of a lossy compression in either image."""
    side = max(1, round(min(view.normal.shape) / 128))
    scaled = _whitened(cell_means(view.difference, side), cell_means(view.body, side) > 0.5)
    return {
        "streak": _strongest_line(scaled),
        "ring": _strongest_ring(view),
        "blocks": max(_grid(view.low, view.body), _grid(view.normal, view.body)),
    }


def _whitened(cells: FloatImage, inside: NDArray[np.bool_]) -> FloatImage:
    """D in units of its own local SD, without its local mean, inside the body; zero elsewhere."""
    if np.count_nonzero(inside) < 100:
        return np.zeros_like(cells)
    weight = ndimage.uniform_filter(inside.astype(np.float32), 17, mode="constant")
    held = np.where(inside, cells, 0)
    mean = ndimage.uniform_filter(held, 17, mode="constant") / np.maximum(weight, 0.05)
    left = np.where(inside, cells - mean, 0)
    typical = float(np.median(np.abs(left[inside]))) * 1.48
    power = np.maximum(ndimage.uniform_filter(left**2, 17, mode="constant"), 0)  # its running sum can end below zero
    spread = np.sqrt(power / np.maximum(weight, 0.05))
    return np.where(inside, left / np.maximum(spread, 0.5 * typical + 0.05), 0).astype(np.float32)


ANGLES = 60
"""Directions in which lines are sought: 3° apart, a line across 128 cells stays within three of them."""


@cache
def _line_bins(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Which line each cell lies on, by direction. Shape: (angle, y·x)."""
    y, x = (one.ravel() - (n - 1) / 2 for one, n in zip(np.indices(shape), shape, strict=True))
    angle = np.arange(ANGLES)[:, None] * np.pi / ANGLES
    n_bins = sum(shape)
    bins = np.round(x * np.cos(angle) + y * np.sin(angle) + n_bins / 2).astype(np.int64)
    return np.asarray(bins + np.arange(ANGLES)[:, None] * (n_bins + 1))


def _strongest_line(scaled: FloatImage) -> float:
    """Largest |sum| along a line in SDs of such sums in its direction, or beside it if larger; NaN without a body."""
    flat = scaled.ravel()
    inside = np.flatnonzero(flat)
    if len(inside) < 400:
        return math.nan
    bins = _line_bins(scaled.shape)[:, inside].ravel()
    n = ANGLES * (sum(scaled.shape) + 1)
    sums = np.bincount(bins, np.tile(flat[inside], ANGLES), n).reshape(ANGLES, -1)
    counts = np.bincount(bins, minlength=n).reshape(ANGLES, -1)
    long = counts >= 20
    z = np.abs(sums) / np.sqrt(np.maximum(counts, 1))
    ordered = np.sort(np.where(long, z, -1), axis=1)
    n_long = long.sum(axis=1)
    at = ordered.shape[1] - n_long + (USUAL_LINE * n_long).astype(int)
    usual = ordered[np.arange(ANGLES), np.minimum(at, ordered.shape[1] - 1)] / 1.44  # that of a normal distribution
    z = np.where(long, z, 0)
    around = np.sqrt(_beside(z**2) / np.maximum(_beside(long.astype(np.float64)), 0.1))
    return float(np.max(z / np.maximum(np.maximum(usual, 0.1)[:, None], around)))


def _beside(lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the lines beside each, without itself and the two next to it on either side. Shape: (angle, line)."""
    wide, near = (n * ndimage.uniform_filter1d(lines, n, axis=1, mode="constant") for n in (BESIDE, 5))
    return np.maximum(wide - near, 0) / (BESIDE - 5)


BESIDE = 25
"""Lines of one direction that are compared with each other: few photons make all of a shoulder streak, a fault one line."""
USUAL_LINE = 0.85
"""Quantile of |sum| that tells what is usual in a direction: noise has directions of its own, a few streaks do not reach it."""


def _strongest_ring(view: View) -> float:
    """Largest |mean| of a circle one pixel wide over what such means are; NaN without a body."""
    radius = _radius(view.normal.shape)
    where = view.body.ravel()
    if np.count_nonzero(where) < 2000:
        return math.nan
    counts = np.bincount(radius[where])
    means = np.bincount(radius[where], view.difference.ravel()[where]) / np.maximum(counts, 1)
    means = np.where(counts >= 60, means, 0)
    z = (means - ndimage.median_filter(means, 9)) * np.sqrt(counts)
    z = np.abs(z[counts >= 60])
    return float(z.max() / max(float(np.median(z)) / 0.6745, 1.0)) if len(z) > 20 else math.nan


@cache
def _radius(shape: tuple[int, int]) -> NDArray[np.int64]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.round(np.hypot(y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2)).astype(np.int64).ravel()


def _grid(image: FloatImage, body: NDArray[np.bool_]) -> float:
    """The finest coefficients of the block DCT half a block off JPEG's grid over those on it: a coder has zeroed the latter."""
    fine = nyquist_fraction(DCT_BLOCK) >= 0.6
    basis = dct_matrix(DCT_BLOCK).astype(np.float32)
    sizes = []
    for offset in ((0, 0), (DCT_BLOCK // 2, DCT_BLOCK // 2)):
        inside = to_blocks(body, offset=offset).all(axis=(-2, -1))
        blocks = to_blocks(image, offset=offset)[inside][::3]
        if len(blocks) < SQUARES:
            return math.nan
        sizes.append(np.abs((basis @ blocks @ basis.T)[:, fine]))
    on, off = (float(np.minimum(size, 100).mean()) for size in sizes)  # edges would outweigh the rest
    return (off + 0.3) / (on + 0.3)  # 0.3 HU: whole HU have that much in each
