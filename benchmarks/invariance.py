"""Whether a denoiser makes a grid of its own, or rings: whole slices against tiles and shifts, flat fields, noise, metal in noise.

Run: python benchmarks/invariance.py [NAME-OR-FOLDER] [--fields 24] [--threads N] [--json FILE]
     python benchmarks/invariance.py --checkpoint RUN/best.safetensors --family hybrid --size s
Without a model, finegrain-s. The slice is one of the scan that ships. Prints each number with its limit, where it has one,
and ends with 1 if a limit is broken. A number from chance comes with its standard error, and it keeps a limit only if it lies
below by three of them. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.acquisition import Acquisition
from finegrain.denoise import Denoiser, load_denoiser, torch_engine
from finegrain.evaluate.bands import band_coherence, band_energy_ratio
from finegrain.evaluate.fidelity import PROTOCOLS, psnr
from finegrain.evaluate.regions import body_mask
from finegrain.frequency import Band
from finegrain.hu import AIR_HU, HURange
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.simulate.acquire import matching_exposure, simulate_low_dose
from finegrain.simulate.fbp import ReconKernel, find_kernel

Image = NDArray[np.floating]

LIMIT_HU = 0.1
"""How far a slice in tiles or moved may be from the slice whole, and a flat field from its CT number: ours."""
LIMIT_PATTERN = 0.1
"""Per cent of the input's noise energy that a pattern tied to the grid may have: ours."""
LIMIT_STEP = 3.2
"""Per cent of the input's noise SD that a step at a seam may have: its energy is then `LIMIT_PATTERN` of the noise."""
ERRORS = 3.0
"""Standard errors by which a number must lie below its limit."""

FLAT_HU = (-1000, -850, -100, 0, 40, 60, 300, 1000)
"""Air, lung, fat, water, organs, contrast, bone."""
NOISE_SD_HU = (5.0, 15.0, 30.0, 60.0)
NOISE_HU = 40.0
"""Level of the noisy fields: soft tissue."""
KERNELS = ("white", "B30f", "D45f")
PIXEL_MM = 0.7
"""Pixel size of the noisy fields: that of a field of view of 360 mm."""
FIELD = 512
"""Side of the noisy fields."""
WINDOWS = 16
"""Every so many pixels lies a border of attention windows: of eight tokens at half resolution; every other also at a quarter."""
TOKEN = 4
"""Pixels of a token at the coarse scale."""
TILES = ((64, 16), (128, 32), (192, 64), (384, 128))
"""Side of tiles, and how far from its borders a tile counts, in pixels."""
TILE, TILE_STEP = 320, 64
"""Side of the tiles that are followed by distance from their borders, and pixels from one to the next."""
BORDER = 128
"""Pixels from a border from which on what lies beyond it must not matter: ours. The formal reach is larger; what comes from beyond
passes through several attentions and has faded."""
NEAR = (64, 96)
"""Distances at which the same is told without a limit."""
LONGEST = 1024
"""Length in pixels of the longest image in which `reach` looks for it."""
INSERT_SIDE, INSERT_HU = 8, 3071
"""An insert of metal: its side in pixels, and the highest CT number of twelve bits."""
INSERT_BLUR = {"sharp": 0.0, "blurred": 0.8}
"""SD in pixels of what its edges are blurred by; 0.8 is about that of a soft kernel."""
INSERT_FIELD, INSERT_NOISE_HU = 192, 20.0
"""Side of the fields with an insert in their middle, and the SD of their noise."""
INSERT_KERNELS = ("white", "B30f")
INSERT_FROM, INSERT_TO = 3, 40
"""Distances in pixels from the insert between which nothing may be noisier than it was; nearer, the edge is kept as it is."""
RINGS = (*((d, d) for d in range(13)), (13, 16), (17, 24), (25, 32), (33, 40))
"""First and last distance of the rings shown."""
SLICE = 4
"""Which of the eight slices of the sample."""
SAMPLE_KERNEL = "B40f"


# --- what is found ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number, and its standard error where it is of chance."""

    value: float
    error: float = 0.0


@dataclass(frozen=True)
class Column:
    """What the numbers of a column are, and their limit."""

    name: str
    unit: str
    limit: float | None = None
    digits: int = 3

    def keeps(self, found: Estimate) -> bool:
        """Whether a number is surely within the limit; NaN never is."""
        return self.limit is None or abs(found.value) + ERRORS * found.error <= self.limit

    def text(self, found: Estimate) -> str:
        error = f" ± {found.error:.{self.digits}f}" if found.error else ""
        return f"{found.value:.{self.digits}f}{error}{' ' if self.keeps(found) else '!'}"


@dataclass(frozen=True)
class Table:
    """Numbers of one kind; a mark ! stands behind those that break their limit."""

    part: str
    title: str
    columns: Sequence[Column]
    rows: dict[str, list[Estimate]]

    def broken(self) -> list[str]:
        """Where limits are broken."""
        return [
            f"{self.part}. {row}: {column.name}"
            for row, values in self.rows.items()
            for column, value in zip(self.columns, values, strict=True)
            if not column.keeps(value)
        ]

    def text(self) -> str:
        heads = [
            [column.name for column in self.columns],
            [column.unit for column in self.columns],
            ["" if column.limit is None else f"≤ {column.limit:g} " for column in self.columns],
        ]
        lines = [["", *head] for head in heads]
        for row, values in self.rows.items():
            lines.append([row, *(column.text(value) for column, value in zip(self.columns, values, strict=True))])
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        text = [
            f"{line[0]:{widths[0]}}" + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True)) for line in lines
        ]
        return "\n".join([f"{self.part}. {self.title}", *text])

    def record(self) -> dict[str, object]:
        """For JSON."""
        limits = {column.name: {"unit": column.unit, "limit": column.limit} for column in self.columns}
        rows = {
            row: {column.name: [value.value, value.error] for column, value in zip(self.columns, values, strict=True)}
            for row, values in self.rows.items()
        }
        return {"part": self.part, "title": self.title, "columns": limits, "rows": rows, "broken": self.broken()}


# --- measures on fields: what a network left of flat fields with independent noise, less their level -------------------


def pattern_energy(fields: Image, period: int) -> Estimate:
    """Energy in HU² of the mean pattern that repeats every `period` pixels, without its mean; 0 on average if there is none.

    Every field is folded over the period. The square of the mean of all would be too large by noise/n; the mean product of
    two *different* fields is not, for their noise is independent, whatever its spectrum. The error is a jackknife over fields.

    Shape: (n, y, x) with y and x multiples of the period.
    """
    n, rows, columns = fields.shape
    folded = fields.reshape(n, rows // period, period, columns // period, period).mean(axis=(1, 3), dtype=np.float64)
    folded -= folded.mean(axis=(1, 2), keepdims=True)
    own, total = folded.reshape(n, -1), folded.reshape(n, -1).sum(axis=0)

    def products(sums: NDArray, squares: NDArray | float, k: int) -> NDArray:
        return (np.mean(sums**2, axis=-1) - squares) / (k * (k - 1))

    squares = np.mean(own**2, axis=1)
    without = products(total - own, squares.sum() - squares, n - 1)
    return Estimate(float(products(total, squares.sum(), n)), float(np.sqrt((n - 1) * without.var())))


def phase_spread(fields: Image, period: int) -> Estimate:
    """How far the noise energy varies over the places of a period: SD over places / mean, without what is chance."""
    energy = pattern_energy(np.square(fields, dtype=np.float64), period)
    mean = float(np.mean(np.square(fields, dtype=np.float64)))
    spread = np.sqrt(max(energy.value, 0.0))
    # Of a root, whose error has no bound at zero: the root of the upper end instead.
    return Estimate(spread / mean, float(np.sqrt(max(energy.value, 0.0) + energy.error) - spread) / mean)


def seam_step(fields: Image, every: int) -> Estimate:
    """Mean step in HU across the borders at multiples of `every` pixels, beyond that across other borders of tokens.

    The larger of both axes. A pattern of the tokens themselves is no seam; `pattern_energy` finds it. Shape: (n, y, x).
    """
    found = [_over_fields(at.mean(axis=1) - elsewhere.mean(axis=1)) for at, elsewhere in _steps(fields, every)]
    return max(found, key=lambda estimate: abs(estimate.value))


def seam_energy(fields: Image, every: int) -> Estimate:
    """Mean square of the step across those borders over that across other borders of tokens, less 1; both axes.

    A seam whose sign is chance, as where two windows judge their noise differently, has no mean step but this.
    """
    ratios = [np.mean(at**2, axis=1) / np.mean(elsewhere**2, axis=1) for at, elsewhere in _steps(fields, every)]
    return _over_fields(np.mean(ratios, axis=0) - 1)


def _steps(fields: Image, every: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Steps across borders of windows and across those of tokens that are none, of rows, then of columns. Shape: (n, step)."""
    for lines in (fields, fields.swapaxes(1, 2)):
        place = np.arange(TOKEN, lines.shape[1], TOKEN)
        steps = lines[:, place].astype(np.float64) - lines[:, place - 1]
        yield steps[:, place % every == 0].reshape(len(fields), -1), steps[:, place % WINDOWS != 0].reshape(len(fields), -1)


def _over_fields(values: NDArray) -> Estimate:
    """The mean of one value a field; one field alone, of no noise, has no error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), float(error))


@dataclass(frozen=True)
class Spikes:
    """The noise spectrum at the multiples of 1/period cycles/pixel, beyond what the frequencies around them have; HU².

    Attributes:
        energy: of all of them.
        strongest: of the highest one.
        by_chance: the highest of as many frequencies half-way between, where no grid can be.
        frequency: of the highest, cycles/pixel, (y, x).
    """

    energy: Estimate
    strongest: float
    by_chance: float
    frequency: tuple[float, float]


def spectrum_spikes(fields: Image, period: int) -> Spikes:
    """`Spikes` of fields of shape (n, y, x), y = x a multiple of four periods."""
    n, size, _ = fields.shape
    step = size // period
    power = np.abs(np.fft.fft2(fields.astype(np.float64) - fields.mean(axis=(1, 2), keepdims=True))) ** 2 / size**4
    around = sum(np.roll(power, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx) / 8
    excess = power - around
    on_grid = excess[:, ::step, ::step].reshape(n, -1)[:, 1:]  # the constant is no spike
    between = excess[:, step // 2 :: step, step // 2 :: step].reshape(n, -1)
    row, column = divmod(int(np.argmax(on_grid.mean(axis=0))) + 1, period)
    return Spikes(
        energy=_over_fields(on_grid.sum(axis=1)),
        strongest=float(on_grid.mean(axis=0).max()),
        by_chance=float(between.mean(axis=0).max()),
        frequency=(min(row, period - row) / period, min(column, period - column) / period),
    )


# --- measures on slices -----------------------------------------------------------------------------------------------


def reach(denoiser: Denoiser, *, longest: int = LONGEST) -> int:
    """How many pixels away an input pixel can still change the output: a line of NaN spreads exactly so far.

    All places of a line within the stride, both axes. Half of `longest` if it spreads to the ends of an image of that length.
    """
    half = _spread(denoiser, length=longest // 2)  # enough for most, and half the work
    found = _spread(denoiser, length=longest) if half is None else half
    return longest // 2 if found is None else found


def _spread(denoiser: Denoiser, *, length: int) -> int | None:
    """`reach` within an image of one length, as narrow as can be; None if that is too short."""
    stride = denoiser.stride
    told = (Acquisition().numbers()[None],) if denoiser.takes_acquisition else ()
    base = np.random.default_rng(0).normal(0.26, 0.01, (stride, length)).astype(np.float32)
    farthest = 0
    for phase in range(stride):
        line = length // 2 + phase
        holed = base.copy()
        holed[:, line] = np.nan
        for image, axis in ((holed, 0), (holed.T, 1)):
            spread = np.flatnonzero(np.isnan(denoiser.engine(np.ascontiguousarray(image)[None, None], *told)[0, 0]).any(axis=axis))
            if spread[0] == 0 or spread[-1] == length - 1:
                return None
            farthest = max(farthest, line - int(spread[0]), int(spread[-1]) - line)
    return farthest


def in_tiles(denoiser: Denoiser, hu: Image, *, tile: int, margin: int) -> NDArray[np.float32]:
    """A slice denoised tile by tile, each kept as far as `margin` pixels from those of its borders that are not the slice's.

    Tiles begin at multiples of the stride. Shape: (y, x), multiples of the stride and at least `tile`.
    """
    joined = np.full(hu.shape, np.nan, np.float32)
    origins = [_origins(side, tile=tile, step=tile - 2 * margin, stride=denoiser.stride) for side in hu.shape]
    for row in origins[0]:
        for column in origins[1]:
            piece = denoiser.denoise_slice(hu[row : row + tile, column : column + tile])
            top, left = (margin if origin else 0 for origin in (row, column))
            bottom, right = (tile if o + tile == side else tile - margin for o, side in zip((row, column), hu.shape, strict=True))
            joined[row + top : row + bottom, column + left : column + right] = piece[top:bottom, left:right]
    return joined


def _origins(side: int, *, tile: int, step: int, stride: int) -> list[int]:
    return sorted({*range(0, side - tile, step // stride * stride), side - tile})


def worst_by_distance(denoiser: Denoiser, hu: Image, whole: Image, *, tile: int, step: int) -> NDArray[np.float64]:
    """The largest difference from the whole slice at each distance from the borders of a tile, in HU, over all tiles.

    Shape: (tile / 2,), distance 0 first.
    """
    line = np.minimum(np.arange(tile), np.arange(tile)[::-1])
    distance = np.minimum(line[:, None], line[None, :])
    worst = np.zeros(tile // 2)
    for row in range(0, hu.shape[0] - tile + 1, step):
        for column in range(0, hu.shape[1] - tile + 1, step):
            place = np.s_[row : row + tile, column : column + tile]
            np.maximum.at(worst, distance, np.abs(denoiser.denoise_slice(hu[place]) - whole[place]))
    return worst


def shifted(denoiser: Denoiser, hu: Image, *, rows: int, columns: int) -> NDArray[np.float32]:
    """A slice moved down and right on a canvas of air one stride larger, denoised, and moved back."""
    canvas = np.full([side + denoiser.stride for side in hu.shape], AIR_HU, np.float32)
    place = np.s_[rows : rows + hu.shape[0], columns : columns + hu.shape[1]]
    canvas[place] = hu
    return denoiser.denoise_slice(canvas)[place]


def rms(values: Image) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


# --- noise ------------------------------------------------------------------------------------------------------------


def noise_amplitude(kernel: ReconKernel | None, *, size: int, pixel_mm: float = PIXEL_MM) -> NDArray[np.float64]:
    """What white noise is multiplied by in frequency to be that of a kernel, √(f · W(f)²), aliases included; 1 without one.

    Mean square 1. Shape: (size, size), zero frequency first.
    """
    if kernel is None:
        return np.ones((size, size))
    f, sampling = np.fft.fftfreq(size, pixel_mm), 1 / pixel_mm
    power = np.zeros((size, size))
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            radial = np.hypot((f + y * sampling)[:, None], (f + x * sampling)[None, :])
            power += radial * kernel(radial) ** 2
    return np.sqrt(power / power.mean())


def noise_fields(amplitude: NDArray, *, sd_hu: float, n: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Independent fields of Gaussian noise with mean 0. Shape: (size, size) each."""
    generator = np.random.default_rng(seed)
    for _ in range(n):
        white = generator.normal(0, sd_hu, amplitude.shape)
        yield np.fft.ifft2(np.fft.fft2(white) * amplitude).real.astype(np.float32)


def denoised_noise(
    denoiser: Denoiser, amplitude: NDArray, *, sd_hu: float, n: int, margin: int, level_hu: float = NOISE_HU, seed: int = 0
) -> tuple[NDArray[np.float32], float]:
    """What is left of `n` flat fields with noise, less their level and `margin` pixels at the borders, and the noise energy put in.

    Shape: (n, y, x); HU².
    """
    inside = np.s_[margin:-margin, margin:-margin]
    left, energy = [], 0.0
    for noise in noise_fields(amplitude, sd_hu=sd_hu, n=n, seed=seed):
        left.append(denoiser.denoise_slice(noise + np.float32(level_hu))[inside] - np.float32(level_hu))
        energy += float(np.mean(np.square(noise[inside], dtype=np.float64))) / n
    return np.stack(left), energy


def flat_deviation(denoiser: Denoiser, level_hu: float, *, margin: int) -> NDArray[np.float32]:
    """Output less input of a flat field without noise, `margin` pixels at the borders left out; two strides wide."""
    side = 2 * (margin + denoiser.stride)
    return denoiser.denoise_slice(np.full((side, side), level_hu, np.float32))[margin:-margin, margin:-margin] - np.float32(
        level_hu
    )


# --- metal ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InsertFields:
    """Fields with an insert of metal in the middle, less what they are without noise.

    Attributes:
        distance: of every pixel from the insert, along rows or columns, whichever is farther; 0 within. Shape: (y, x).
        given: the noise put in. Shape: (n, y, x).
        left: what the denoiser made of it.
    """

    distance: NDArray[np.intp]
    given: NDArray[np.float32]
    left: NDArray[np.float32]

    def ratio(self, where: NDArray[np.bool_]) -> Estimate:
        """SD over the fields of what is left, over that of what was given, in one group of pixels; the error is a jackknife."""
        left, given = (
            np.square((fields - fields.mean(axis=0))[:, where], dtype=np.float64).sum(axis=1) for fields in (self.left, self.given)
        )
        n = len(left)
        # A field left out takes n/(n−1) of its square about the mean along, for the mean moves too.
        without = np.sqrt((left.sum() - left * n / (n - 1)) / (given.sum() - given * n / (n - 1)))
        return Estimate(float(np.sqrt(left.sum() / given.sum())), float(np.sqrt((n - 1) * without.var())))

    def bias(self, where: NDArray[np.bool_]) -> Estimate:
        """Mean of what is left over one group of pixels, in HU."""
        return _over_fields(self.left[:, where].mean(axis=1, dtype=np.float64))

    def ring(self, first: int, last: int) -> NDArray[np.bool_]:
        """Pixels between two distances, both included."""
        return (self.distance >= first) & (self.distance <= last)

    def noisiest(self) -> tuple[Estimate, int]:
        """The largest `ratio` of a ring one pixel wide within the limit's distances, and its distance."""
        found = [(self.ratio(self.ring(d, d)), d) for d in range(INSERT_FROM, INSERT_TO + 1)]
        return max(found, key=lambda one: one[0].value)

    def most_biased(self) -> tuple[Estimate, int]:
        """The `bias` of the ring where it is largest, either way, and its distance."""
        found = [(self.bias(self.ring(d, d)), d) for d in range(INSERT_FROM, INSERT_TO + 1)]
        return max(found, key=lambda one: abs(one[0].value))


def insert_fields(denoiser: Denoiser, kernel: str, *, blur: float, n: int, size: int = INSERT_FIELD, seed: int = 0) -> InsertFields:
    """An insert of metal in soft tissue with noise, denoised `n` times."""
    first = (size - INSERT_SIDE) // 2
    place = np.arange(size)
    away = np.maximum(0, np.maximum(first - place, place - (first + INSERT_SIDE - 1)))
    distance = np.maximum(away[:, None], away[None, :])
    shape = ndimage.gaussian_filter((distance == 0).astype(np.float64), blur)
    still = (NOISE_HU + (INSERT_HU - NOISE_HU) * shape).astype(np.float32)
    amplitude = noise_amplitude(None if kernel == "white" else find_kernel(kernel), size=size)
    given = np.stack(list(noise_fields(amplitude, sd_hu=INSERT_NOISE_HU, n=n, seed=seed)))
    left = np.stack([denoiser.denoise_slice(still + noise) - still for noise in given])
    return InsertFields(distance, given, left)


# --- the tables -------------------------------------------------------------------------------------------------------


def tile_tables(denoiser: Denoiser, images: dict[str, Image], reached: int) -> Iterator[Table]:
    """Slices whole against tiles."""
    by_distance, joined = {}, {}
    for name, hu in images.items():
        whole = denoiser.denoise_slice(hu)
        worst = worst_by_distance(denoiser, hu, whole, tile=TILE, step=TILE_STEP)
        beyond = np.flatnonzero(worst > LIMIT_HU)
        values = (*(float(worst[d:].max()) for d in (*NEAR, BORDER)), int(beyond[-1]) + 1 if len(beyond) else 0)
        by_distance[name] = [Estimate(value) for value in values]
        removed = rms((whole - hu)[body_mask(hu)])
        for tile, margin in TILES:
            difference = in_tiles(denoiser, hu, tile=tile, margin=margin) - whole
            values = (float(np.abs(difference).max()), rms(difference), 100 * rms(difference) / removed)
            joined[f"{name}, tiles of {tile}², {margin} from their borders"] = [Estimate(value) for value in values]
    formal = f"{reached} px" if reached < LONGEST // 2 else "not bounded"
    yield Table(
        "a",
        f"Whole slice against tiles of {TILE}², one every {TILE_STEP} px: largest difference by distance from their borders. "
        f"The network's formal reach is {formal}",
        [
            *(Column(f"from {distance} px on", "HU") for distance in NEAR),
            Column(f"from {BORDER} px on", "HU", LIMIT_HU),
            Column(f"below {LIMIT_HU} HU from", "px", None, 0),
        ],
        by_distance,
    )
    columns = [Column("largest", "HU"), Column("RMS", "HU", None, 4), Column("RMS / noise removed", "%", None, 2)]
    yield Table("a", "Whole slice against tiles put together (no limit)", columns, joined)


def shift_tables(denoiser: Denoiser, hu: Image, *, border: int) -> Iterator[Table]:
    """The slice against the same slice moved."""
    still, stride = shifted(denoiser, hu, rows=0, columns=0), denoiser.stride
    inner = np.zeros(hu.shape, bool)
    inner[border:-border, border:-border] = True
    inner &= body_mask(hu)
    removed = rms((still - hu)[inner])

    def change(rows: int, columns: int) -> NDArray[np.float32]:
        return (shifted(denoiser, hu, rows=rows, columns=columns) - still)[inner]

    by_stride = {}
    for rows, columns in ((stride, 0), (0, stride), (stride, stride)):
        difference = change(rows, columns)
        by_stride[f"{rows} down, {columns} right"] = [Estimate(float(np.abs(difference).max())), Estimate(rms(difference))]
    yield Table(
        "b",
        f"Slice moved by the stride; in the body, farther than {border} px from the borders",
        [Column("largest", "HU", LIMIT_HU), Column("RMS", "HU", None, 4)],
        by_stride,
    )
    found: dict[int, list[NDArray]] = defaultdict(list)
    for shift in range(1, stride):
        found[shift & -shift] += [change(shift, 0), change(0, shift)]
    table = {}
    for power in sorted(found):
        differences = np.stack(found[power])
        worst = max(rms(difference) for difference in differences)
        values = (float(np.abs(differences).max()), rms(differences), worst, 100 * rms(differences) / removed)
        name = "odd shifts" if power == 1 else f"odd multiples of {power}"
        table[f"{name}, {len(differences)} moves"] = [Estimate(value) for value in values]
    yield Table(
        "b",
        f"Moved by 1 to {stride - 1} px along either axis: strides and windows make it another answer (no limit)",
        [
            Column("largest", "HU"),
            Column("RMS", "HU"),
            Column("RMS, worst move", "HU"),
            Column("RMS / noise removed", "%", None, 1),
        ],
        table,
    )


def patch_table(denoiser: Denoiser, low: Image, reference: Image, *, pixel_mm: float) -> Table:
    """A slice of low dose whole, and as the patches that a network is trained on."""
    body, protocol = body_mask(reference), PROTOCOLS["abdomen-40/400"]
    whole = denoiser.denoise_slice(low)
    images = {"input": low, "whole slice": whole}
    for tile, margin in TILES:
        images[f"patches of {tile}², inner {tile - 2 * margin}²"] = in_tiles(denoiser, low, tile=tile, margin=margin)
    rows = {}
    for name, image in images.items():
        fine = [
            measure(reference, image, band=Band(), pixel_mm=pixel_mm, roi=body) for measure in (band_energy_ratio, band_coherence)
        ]
        values = (psnr(reference, image, protocol=protocol, roi=body), *fine, rms((image - whole)[body]))
        rows[name] = [Estimate(value) for value in values]
    return Table(
        "c",
        "Quarter dose, simulated, against the slice; body, window [−160, 240] HU, HF above 0.4 Nyquist (no limit)",
        [
            Column("PSNR", "dB", None, 2),
            Column("HF ratio", ""),
            Column("HF coherence", ""),
            Column("RMS from whole", "HU", None, 2),
        ],
        rows,
    )


def flat_table(denoiser: Denoiser, margin: int) -> Table:
    """Flat fields without noise."""
    rows = {}
    for level in FLAT_HU:
        deviation = flat_deviation(denoiser, level, margin=margin).astype(np.float64)
        step = max((seam_step(deviation[None], every) for every in (WINDOWS, 2 * WINDOWS)), key=lambda found: abs(found.value))
        rows[f"{level} HU"] = [*map(Estimate, (deviation.mean(), np.abs(deviation).max())), step, Estimate(deviation.std())]
    return Table(
        "d",
        f"Flat field without noise, farther than {margin} px from the borders",
        [
            *(Column(name, "HU", LIMIT_HU) for name in ("bias", "largest deviation", "step at windows")),
            Column("SD of pattern", "HU"),
        ],
        rows,
    )


def noise_tables(denoiser: Denoiser, margin: int, *, n: int) -> Iterator[Table]:
    """Flat fields with noise."""
    periods = [2**k for k in range(1, denoiser.stride.bit_length())]
    patterns, seams, spectra = {}, {}, {}
    for seed, (kernel, sd_hu) in enumerate(product(KERNELS, NOISE_SD_HU)):
        amplitude = noise_amplitude(None if kernel == "white" else find_kernel(kernel), size=FIELD)
        fields, energy = denoised_noise(denoiser, amplitude, sd_hu=sd_hu, n=n, margin=margin, seed=seed)
        name = f"{kernel}, {sd_hu:g} HU"
        patterns[name] = [_percent(pattern_energy(fields, period), energy) for period in periods]
        seams[name] = [
            *(_percent(seam_step(fields, every), np.sqrt(energy)) for every in (WINDOWS, 2 * WINDOWS)),
            *(_percent(seam_energy(fields, every)) for every in (WINDOWS, 2 * WINDOWS)),
            *(_percent(phase_spread(fields, period)) for period in (TOKEN, denoiser.stride)),
        ]
        spikes = spectrum_spikes(fields, denoiser.stride)
        spectra[name] = [
            _percent(spikes.energy, energy),
            *(Estimate(100 * one / energy) for one in (spikes.strongest, spikes.by_chance)),
            *map(Estimate, spikes.frequency),
            Estimate(100 * float(fields.var(dtype=np.float64)) / energy),
            _over_fields(fields.mean(axis=(1, 2), dtype=np.float64)),
        ]
    side = FIELD - 2 * margin
    yield Table(
        "e",
        f"Flat field of {NOISE_HU:g} HU with noise: energy of the mean pattern over that of the noise put in; {n} fields, "
        f"inner {side}², {n * (side // denoiser.stride) ** 2} periods of {denoiser.stride}²",
        [Column(f"period {period}", "%", LIMIT_PATTERN, 4) for period in periods],
        patterns,
    )
    yield Table(
        "e",
        "Borders of windows: mean step over the noise SD put in, square of the step beyond that elsewhere; SD of the noise energy "
        "over the places of a period",
        [
            *(Column(f"step every {every}", "%", LIMIT_STEP, 2) for every in (WINDOWS, 2 * WINDOWS)),
            *(Column(f"square every {every}", "%", None, 1) for every in (WINDOWS, 2 * WINDOWS)),
            *(Column(f"period {period}", "%", None, 1) for period in (TOKEN, denoiser.stride)),
        ],
        seams,
    )
    yield Table(
        "e",
        f"Noise spectrum at multiples of 1/{denoiser.stride} cycles/px beyond that around, over the noise put in",
        [
            Column("all spikes", "%", None, 4),  # what period 32 has above, known less well
            Column("strongest", "%", None, 4),
            Column("by chance", "%", None, 4),
            Column("at y", "c/px"),
            Column("at x", "c/px"),
            Column("noise left", "%", None, 1),
            Column("bias", "HU"),
        ],
        spectra,
    )


def insert_tables(denoiser: Denoiser, *, n: int) -> Iterator[Table]:
    """Metal in noise."""
    extremes = {}
    for kernel in INSERT_KERNELS:
        fields = {edges: insert_fields(denoiser, kernel, blur=blur, n=n) for edges, blur in INSERT_BLUR.items()}
        for edges, found in fields.items():
            (ratio, noisiest), (bias, most_biased) = found.noisiest(), found.most_biased()
            extremes[f"{kernel}, {edges}"] = [ratio, Estimate(noisiest), bias, Estimate(most_biased)]
        rows = {}
        for first, last in RINGS:
            rings = [(found, found.ring(first, last)) for found in fields.values()]
            sd = float(np.sqrt(fields["sharp"].given[:, rings[0][1]].var(axis=0, ddof=1).mean()))  # the same noise for either
            values = [Estimate(sd)]
            for found, ring in rings:
                ratio = found.ratio(ring)
                values += [Estimate(ratio.value * sd, ratio.error * sd), found.bias(ring)]
            rows[f"{first} px" if first == last else f"{first} to {last} px"] = values
        yield Table(
            "f",
            f"Metal, {INSERT_SIDE}² px of {INSERT_HU} HU, in {kernel} noise of {INSERT_NOISE_HU:g} HU, by distance from it; {n} "
            "fields (no limit; the input has no bias)",
            [
                Column("SD before", "HU", None, 1),
                *(Column(f"{edges}: {name}", "HU", None, 1) for edges in fields for name in ("SD after", "bias")),
            ],
            rows,
        )
    yield Table(
        "f",
        f"The noisiest and the most biased ring from {INSERT_FROM} to {INSERT_TO} px from the metal",
        [
            Column("noise after / before", "", 1.0),
            Column("at", "px", None, 0),
            Column("bias after", "HU", None, 1),
            Column("bias at", "px", None, 0),
        ],
        extremes,
    )


def _percent(found: Estimate, whole: float = 1.0) -> Estimate:
    return Estimate(100 * found.value / whole, 100 * found.error / whole)


def tables(denoiser: Denoiser, *, fields: int) -> Iterator[Table]:
    """All of them, one after another."""
    volume = read_series(sample_folder()).part(slice(SLICE, SLICE + 1))
    kernel = find_kernel(SAMPLE_KERNEL)
    exposure = matching_exposure(volume, kernel=kernel)
    low = simulate_low_dose(volume, dose_fraction=0.25, kernel=kernel, exposure=exposure, seed=0)
    hu = volume.hu[0]
    yield from tile_tables(denoiser, {"slice": hu, "quarter dose": low.hu[0]}, reach(denoiser))
    yield from shift_tables(denoiser, hu, border=BORDER)
    yield patch_table(denoiser, low.hu[0], hu, pixel_mm=volume.pixel_mm[0])
    yield flat_table(denoiser, BORDER)
    yield from noise_tables(denoiser, BORDER, n=fields)
    yield from insert_tables(denoiser, n=2 * fields)


def checkpoint_denoiser(path: Path, *, family: str, size: str) -> Denoiser:
    """The denoiser of weights that a run left."""
    import safetensors.torch

    from finegrain.config import NetworkConfig
    from finegrain.networks.skeleton import STRIDE, DenoisingNetwork

    network = DenoisingNetwork(NetworkConfig.model_validate({"family": family, "size": size}))
    network.load_state_dict(safetensors.torch.load_file(path))
    return Denoiser(torch_engine(network), hu_range=HURange(), stride=STRIDE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="a model folder or the name of a bundled model; finegrain-s by default")
    parser.add_argument("--checkpoint", type=Path, help="weights of a run, instead of a model folder")
    parser.add_argument("--family", default="hybrid")
    parser.add_argument("--size", default="s")
    parser.add_argument("--fields", type=int, default=24, help="noisy fields of each kind; twice as many with metal")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; all cores by default")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.checkpoint:
        denoiser = checkpoint_denoiser(given.checkpoint, family=given.family, size=given.size)
    else:
        denoiser = load_denoiser(given.model, threads=given.threads)
    found = []
    print(f"{denoiser.name}; ! breaks a limit; ± is a standard error, and {ERRORS:g} of them must fit below the limit")
    for table in tables(denoiser, fields=given.fields):
        found.append(table)
        print(f"\n{table.text()}", flush=True)
    broken = [row for table in found for row in table.broken()]
    print(f"\n{len(broken)} limits broken", *broken, sep="\n")
    if given.json:
        record = {"model": denoiser.name, "tables": [table.record() for table in found]}
        given.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
