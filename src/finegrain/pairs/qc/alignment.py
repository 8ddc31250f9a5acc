"""How L lies on N: shift, rotation and slope of the whole, shifts of its parts, and whether it is the same slice."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.frequency import to_blocks
from finegrain.pairs.qc.view import NOT_AIR_HU, FloatImage, View, cell_means, pixels_of

EDGE_SMOOTH_PX = 1.0
"""Gaussian before the gradients: takes the noise above what edges have. A default, taken from nowhere."""


def measure_alignment(view: View) -> dict[str, float]:
    """Shift, rotation and slope of the whole; shifts of its parts; what of D are edges."""
    low, normal = np.minimum(view.low, 500), np.minimum(view.normal, 500)  # metal would outweigh the body
    jump = _coarse_shift(low, normal)
    if jump != (0, 0):
        low = np.roll(low, (-jump[0], -jump[1]), (0, 1))
    near = pixels_of(ndimage.binary_dilation(view.cell_body, iterations=2), view.cell, normal.shape) & view.valid
    box = _box(near)
    low, normal, near = low[box], normal[box], near[box]
    if np.count_nonzero(near & (normal > NOT_AIR_HU)) < 500:
        return dict.fromkeys(ALIGNMENT_MEASURES, math.nan)
    smooth = ndimage.gaussian_filter(normal, EDGE_SMOOTH_PX, truncate=3.0)
    moved = ndimage.gaussian_filter(low - normal, EDGE_SMOOTH_PX, truncate=3.0)
    gradient_y, gradient_x = np.gradient(smooth)
    where = near & (smooth > NOT_AIR_HU)
    rows, columns = view.normal.shape
    y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32((rows - 1) / 2)
    x = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None, :] - np.float32((columns - 1) / 2)
    turn = (x * gradient_y - y * gradient_x) / 100
    some = np.flatnonzero(where)[::2]
    parts = (gradient_y, gradient_x, turn, smooth / 1000)
    terms = np.stack([*(part.ravel()[some] for part in parts), np.ones(len(some), dtype=np.float32)])
    wanted = moved.ravel()[some]
    fit = np.linalg.lstsq((terms @ terms.T).astype(np.float64), (terms @ wanted).astype(np.float64), rcond=1e-10)[0]
    shift_y, shift_x = -fit[0], -fit[1]
    left = moved + np.float32(shift_y) * gradient_y + np.float32(shift_x) * gradient_x
    strength = gradient_y**2 + gradient_x**2
    body_strength = strength.ravel()[some]
    edge = body_strength > np.quantile(body_strength[::7], 0.95)
    return {
        "shift_y_px": float(shift_y + jump[0]),
        "shift_x_px": float(shift_x + jump[1]),
        "rotation_deg": math.degrees(-fit[2] / 100),
        "slope": float(1 + fit[3] / 1000),
        "motion_px": _local_shift(left, gradient_y, gradient_x, where, round(32 / view.pixel_mm)),
        "swapped": _coarse_difference(view, slope=fit[3] / 1000, intercept=fit[4]),
        "edges": _at_edges(wanted, edge, _square_of(normal.shape, round(32 / view.pixel_mm))[some]),
    }


ALIGNMENT_MEASURES = ("shift_y_px", "shift_x_px", "rotation_deg", "slope", "motion_px", "swapped", "edges")


def _box(pixels: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest box of at least 64 pixels a side, where there are so many, that holds all that is true."""
    sides = []
    for axis, n in enumerate(pixels.shape):
        at = np.flatnonzero(pixels.any(axis=1 - axis))
        first, last = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, n)
        sides.append(slice(max(0, min(first, n - 64)), min(n, max(last, first + 64))))
    return sides[0], sides[1]


def _coarse_shift(low: FloatImage, normal: FloatImage) -> tuple[int, int]:
    """Shift to two pixels or so, by phase correlation of the images at about 256 pixels."""
    side = max(1, round(min(normal.shape) / 256))
    small, other = cell_means(low, side), cell_means(normal, side)
    window = _hann(small.shape)
    a, b = scipy.fft.rfft2((small + 1000) * window), scipy.fft.rfft2((other + 1000) * window)
    cross = a * np.conj(b)
    cross *= _low_pass(small.shape) / np.maximum(np.abs(cross), 1e-6 * max(float(np.abs(cross).max()), 1e-20))
    surface = scipy.fft.irfft2(cross, s=small.shape)
    top = np.unravel_index(int(np.argmax(surface)), surface.shape)
    shift = [int(k) if k <= n // 2 else int(k) - n for k, n in zip(top, surface.shape, strict=True)]
    return shift[0] * side, shift[1] * side


@cache
def _hann(shape: tuple[int, int]) -> FloatImage:
    return np.outer(np.hanning(shape[0]), np.hanning(shape[1])).astype(np.float32)


@cache
def _low_pass(shape: tuple[int, int]) -> FloatImage:
    """A Gaussian on the frequencies of `rfft2`, 1/e at a quarter of the sampling: where noise has not drowned the anatomy."""
    f = np.hypot(scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])[None, :])
    return np.exp(-((f / 0.25) ** 2)).astype(np.float32)


def _local_shift(moved: FloatImage, gradient_y: FloatImage, gradient_x: FloatImage, where: NDArray[np.bool_], side: int) -> float:
    """The largest shift of a square across its edges that is sure, px: what is left of it without its error."""
    side = min(side, min(moved.shape) // 2)
    inside = to_blocks(where, side).reshape(-1, side * side)
    inside_n = np.count_nonzero(inside, axis=1)
    enough = inside_n >= 0.2 * side**2
    if not enough.any():
        return math.nan
    y, x, d = (to_blocks(one, side).reshape(-1, side * side)[enough] * inside[enough] for one in (gradient_y, gradient_x, moved))
    yy, xx, yx, dy, dx, dd = (
        np.einsum("bp,bp->b", a, b).astype(np.float64) for a, b in ((y, y), (x, x), (y, x), (d, y), (d, x), (d, d))
    )
    half, mean = np.hypot((yy - xx) / 2, yx), (yy + xx) / 2
    strong = mean + half  # the larger eigenvalue: along its vector the square has its edges
    angle = np.arctan2(2 * yx, yy - xx) / 2
    along = np.cos(angle) * dy + np.sin(angle) * dx
    shift = along / np.maximum(strong, 1e-9)
    left = np.maximum(dd - along * shift, 0) / inside_n[enough]
    doubt = np.sqrt(left * CORRELATED_PX / np.maximum(strong, 1e-9))
    sure = np.abs(shift) - SURE * doubt
    return float(max(sure.max(), 0.0))


CORRELATED_PX = 8 * math.pi * EDGE_SMOOTH_PX**2
"""About so many pixels share one value of the noise after the smoothing: 4 π σ² of white noise, twice that of a smooth kernel."""
SURE = 2.0
"""Standard errors of a local shift that may be chance: there are about a hundred squares."""


@cache
def _square_of(shape: tuple[int, int], side: int) -> NDArray[np.int64]:
    """Number of the side × side square that each pixel lies in. Shape: (y·x,)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(y // side * (1 + shape[1] // side) + x // side).ravel()


def _at_edges(difference: FloatImage, edge: NDArray[np.bool_], square: NDArray[np.int64]) -> float:
    """Rms of D at edges over that elsewhere, or over that of the rest of their squares if larger: between hips D is strong
    whether there are edges or not.
    """
    power, n = difference.astype(np.float64) ** 2, int(square.max()) + 1
    plain = ~edge
    if not edge.any() or not plain.any():
        return math.nan
    usual = float(power[plain].mean())
    counts, sums = np.bincount(square[plain], minlength=n), np.bincount(square[plain], power[plain], n)
    around = (sums + FEW * usual) / (counts + FEW)
    expected = max(usual, float(around[square[edge]].mean()))
    return math.sqrt(float(power[edge].mean()) / expected) if expected > 0 else math.nan


FEW = 50
"""Pixels of a square without edges that count as much as all of the image. A default, taken from nowhere."""


def _coarse_difference(view: View, *, slope: float, intercept: float) -> float:
    """The 98th percentile of |D| in cells of 8 mm, without what a wrong slope and intercept make of it, over the noise of D."""
    side = max(1, round(8 / view.pixel_mm))
    inside = cell_means(view.body, side) == 1
    if np.count_nonzero(inside) < 10:
        return math.nan
    linear = slope * cell_means(np.minimum(view.normal, 500), side)[inside] + intercept
    coarse = np.abs(cell_means(view.difference, side)[inside] - linear)
    fine = view.difference[:, 1:] - view.difference[:, :-1]
    noise = np.median(np.abs(fine[view.body[:, 1:]][::5])) / 0.954
    return float(np.quantile(coarse, 0.98) / max(float(noise), 1.0))
