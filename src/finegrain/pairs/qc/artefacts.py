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
    inside = cell_means(view.body, side) > 0.5
    scaled = _whitened(cell_means(view.difference, side), inside)
    water_mm = (np.clip(cell_means(view.normal, side) / 1000 + 1, 0, 2) * side * view.pixel_mm).astype(np.float32)
    return {
        "streak": _fan_of_lines(scaled, water_mm),
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


def _fan_of_lines(scaled: FloatImage, water_mm: FloatImage) -> float:
    """How strong the lines of D are that point in more than one direction; NaN without a body.

    Idea: a ray that few photons passed is a line of D, too. So a line is compared with lines through as much tissue, with those
    of its direction and with those beside it, and what counts is the second strongest of `SECTORS`: such rays pass shoulders and
    hips from side to side, while metal, contrast agent and motion send lines all around. A line alone counts `ALONE`.
    """
    flat = scaled.ravel()
    inside = np.flatnonzero(flat)
    if len(inside) < 400:
        return math.nan
    bins = _line_bins(scaled.shape)[:, inside].ravel()
    n = ANGLES * (sum(scaled.shape) + 1)
    sums, paths_mm = (np.bincount(bins, np.tile(one.ravel()[inside], ANGLES), n).reshape(ANGLES, -1) for one in (scaled, water_mm))
    counts = np.bincount(bins, minlength=n).reshape(ANGLES, -1)
    long = counts >= 20
    z = np.where(long, np.abs(sums) / np.sqrt(np.maximum(counts, 1)), 0)
    z[long] /= _usual_by_path(z[long], paths_mm[long])
    ordered = np.sort(np.where(long, z, -1), axis=1)
    n_long = long.sum(axis=1)
    at = ordered.shape[1] - n_long + (USUAL_LINE * n_long).astype(int)
    usual = ordered[np.arange(ANGLES), np.minimum(at, ordered.shape[1] - 1)] / 1.44  # that of a normal distribution
    around = np.sqrt(_beside(z**2) / np.maximum(_beside(long.astype(np.float64)), 0.1))
    strongest = np.max(z / np.maximum(np.maximum(usual, 0.1)[:, None], around), axis=1)
    second, first = np.sort(strongest.reshape(SECTORS, -1).max(axis=1))[-2:]
    return float(max(second, ALONE * first))


SECTORS = 12
"""Of 15° each; a default, taken from nowhere."""
ALONE = 0.5
"""What a line without another one in a second sector counts, and a circle with its strongest eighths: good pairs have lines of up
to 10.8 SDs and circles of up to 8.1, which few photons make."""
PATH_LINES = 150
"""So many lines through about as much tissue tell what is usual of such. A default, taken from nowhere."""


def _usual_by_path(z: NDArray, paths_mm: NDArray) -> NDArray[np.float64]:
    """What is usual of lines that pass as much tissue as each does. Shape: (line,) each."""
    n = max(1, len(z) // PATH_LINES)
    parts = np.argsort(paths_mm)[: len(z) // n * n].reshape(n, -1)
    usual = ndimage.median_filter(np.quantile(z[parts], USUAL_LINE, axis=1) / 1.44, 3, mode="nearest")
    return np.maximum(np.interp(paths_mm, paths_mm[parts].mean(axis=1), usual), 0.1)


def _beside(lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the lines or circles beside each, without itself and the two next to it on either side. Shape: (…, line)."""
    wide, near = (n * ndimage.uniform_filter1d(lines, n, mode="constant") for n in (BESIDE, 5))
    return np.maximum(wide - near, 0) / (BESIDE - 5)


BESIDE = 25
"""Lines of one direction, or circles, that are compared with each other: few photons make all of a shoulder streak, a fault one
line."""
USUAL_LINE = 0.85
"""Quantile of |sum| that tells what is usual in a direction: noise has directions of its own, a few streaks do not reach it."""


def _strongest_ring(view: View) -> float:
    """How strong a circle one pixel wide is all around, over what such sums are, or those beside it if larger; NaN without a body.

    Idea: a ring goes all around, while a streak runs along a circle in one place, or in two that face each other. So the two
    eighths that add most to the sum are left out; the whole sum counts `ALONE`.
    """
    where = view.body.ravel()
    if np.count_nonzero(where) < 2000:
        return math.nan
    bins = _circle_bins(view.normal.shape)[where]
    n = _circle_bins(view.normal.shape).max() // EIGHTHS + 1
    counts = np.bincount(bins, minlength=EIGHTHS * n).reshape(n, EIGHTHS).T
    sums = np.bincount(bins, view.difference.ravel()[where], EIGHTHS * n).reshape(n, EIGHTHS).T
    count = counts.sum(axis=0)
    long = count >= 60
    if np.count_nonzero(long) <= 20:
        return math.nan
    means = np.where(long, sums.sum(axis=0) / np.maximum(count, 1), 0)
    excess = np.where(long, (sums - counts * ndimage.median_filter(means, 9)) / np.sqrt(np.maximum(count, 1)), 0)
    whole = excess.sum(axis=0)
    all_around = np.maximum(np.sort(excess * np.sign(whole), axis=0)[:-2].sum(axis=0), ALONE * np.abs(whole))
    usual = max(float(np.median(np.abs(whole[long]))) / 0.6745, 1.0)
    around = np.sqrt(_beside(whole**2) / np.maximum(_beside(long.astype(np.float64)), 0.4))
    return float(np.max(all_around / np.maximum(usual, around)))


EIGHTHS = 8


@cache
def _circle_bins(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Eighth and radius of each pixel: radius · 8 + eighth; rows and columns through the middle run along eighths' middles."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    y, x = y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2
    eighth = np.floor((np.arctan2(y, x) / (2 * np.pi) + 0.5 / EIGHTHS) * EIGHTHS).astype(np.int64) % EIGHTHS
    return np.asarray(np.round(np.hypot(y, x)).astype(np.int64) * EIGHTHS + eighth).ravel()


def _grid(image: FloatImage, body: NDArray[np.bool_]) -> float:
    """The finest coefficients of the block DCT half a block off JPEG's grid over those on it: a coder has zeroed the latter."""
    fine = nyquist_fraction(DCT_BLOCK) >= 0.6
    basis = dct_matrix(DCT_BLOCK).astype(np.float32)
    sizes = []
    for offset in ((0, 0), (DCT_BLOCK // 2, DCT_BLOCK // 2)):
        inside = to_blocks(body, offset=offset).all(axis=(-2, -1))
        blocks = to_blocks(image, offset=offset)[inside]
        blocks = blocks[:: 1 + 2 * (len(blocks) > ENOUGH_BLOCKS)]
        if len(blocks) < SQUARES:
            return math.nan
        sizes.append(np.abs((basis @ blocks @ basis.T)[:, fine]))
    on, off = (float(np.minimum(size, 100).mean()) for size in sizes)  # edges would outweigh the rest
    return (off + 0.3) / (on + 0.3)  # 0.3 HU: whole HU have that much in each


ENOUGH_BLOCKS = 1200
"""From so many blocks on, every third tells the grid, for time. A default, taken from nowhere."""
