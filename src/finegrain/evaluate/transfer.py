"""Task transfer function: how much of each spatial frequency arrives at the edge of a cylinder of one contrast.

Not an MTF: a network or an iterative reconstruction transfers a strong edge otherwise than a weak one, and otherwise at
another noise. Each result therefore carries its contrast and its noise, and many slices or repeated scans are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.signal.windows import tukey
from scipy.special import erf

from finegrain.errors import DataError

BIN_PIXELS = 0.1
"""Width of a bin of the oversampled edge in pixels: a tenth, as is usual for edges; what it blurs is divided out."""

FREQUENCY_STEP_PER_MM = 0.01
"""Step of the frequency axis in cycles/mm, the same for all pixel sizes; a default, taken from nowhere."""

REACH_MM = 6.0
"""Default distance to either side of the edge that is looked at; a default: a Gaussian edge with σ = 1 mm ends within it."""

REACH_OF_RADIUS = 0.8
"""The reach is never more than this part of the radius: nearer to the centre are too few pixels."""

TAPER = 0.5
"""Part of the window over the line spread that falls off, a quarter at either end; there the plateaus are averaged."""

LEAST_TOTAL_CNR = 25.0
"""Contrast-to-noise ratio × √images below which a warning is given: the upper end of the 15 to 25 quoted for the circular edge
(not checked against the text of AAPM Report 233). Measured with white noise, radii of 6 and 12 mm and pixels of 0.7 mm:
at 25 the TTF scatters by 0.02 to 0.05 up to f10 and f50 by 2 to 3 %; at 15 by 0.03 to 0.08 and 3 to 5 %; at 100 by 0.01 and 1 %."""

FEWEST_IMAGES = 5
"""Images below which no interval is given; a default, taken from nowhere."""

N_RESAMPLES = 500
"""Bootstrap resamples of the interval; a default, taken from nowhere."""

Pixels = Literal["samples", "averages"]


@dataclass(frozen=True)
class TTFInterval:
    """Bootstrap 95 % limits over the images: what other slices or repeats of the same insert would have given.

    Attributes:
        low, high: of the TTF at each frequency.
        f50_low_per_mm, f50_high_per_mm, f10_low_per_mm, f10_high_per_mm: of the two frequencies; NaN where it is not reached.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    f50_low_per_mm: float
    f50_high_per_mm: float
    f10_low_per_mm: float
    f10_high_per_mm: float


@dataclass(frozen=True)
class TTF:
    """The transfer at one insert.

    Attributes:
        frequency_per_mm: cycles/mm, from 0 to one over the pixel.
        ttf: 1 at frequency 0; above 1 where a kernel sharpens; may fall below 0 by noise.
        contrast_hu: inside minus outside, with its sign.
        noise_hu: standard deviation of one image beside the insert.
        total_cnr: |contrast| / noise × √images.
        f50_per_mm, f10_per_mm: where the TTF first falls to 0.5 and 0.1; NaN if it does not.
        centre: (row, column) in pixels, as found. radius_mm: as found.
        n_images: how many were averaged.
        interval: None for fewer than five images.
        warnings: what a reader must know before believing the numbers, in plain words.
    """

    frequency_per_mm: NDArray[np.float64]
    ttf: NDArray[np.float64]
    contrast_hu: float
    noise_hu: float
    total_cnr: float
    f50_per_mm: float
    f10_per_mm: float
    centre: tuple[float, float]
    radius_mm: float
    n_images: int
    interval: TTFInterval | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Circle:
    row: float
    column: float
    radius_mm: float
    blur_mm: float


def circular_edge_ttf(
    images_hu: NDArray,
    *,
    centre: tuple[float, float],
    radius_mm: float,
    pixel_mm: float,
    reach_mm: float = REACH_MM,
    pixels: Pixels = "samples",
    seed: int = 0,
) -> TTF:
    """The task transfer function at a cylindrical insert, seen end on, by its circular edge.

    The centre is found in the mean image. Pixels sorted by their distance to it give the edge oversampled, its derivative
    the line spread, the Fourier transform of that the TTF. Four steps keep the bias small. (1) The derivative is multiplied by
    √(r/radius): the blurred disc is ∫ radius J₁(2πf·radius) J₀(2πfr) TTF(f) 2π df, whose derivative has, for both arguments large,
    √(radius/r) times the line spread of a straight edge. (2) What binning and differencing do, sinc² of the bin, is divided
    out. (3) The real part about the edge is taken: the line spread of a ring average is even, and unlike the magnitude the
    real part of noise is zero on average. (4) The edge is never forced to rise all the way: a sharp kernel truly overshoots.

    Args:
        centre: (row, column) in pixels, right to half the radius.
        radius_mm: nominal radius of the insert; the true one is found.
        reach_mm: how far to either side of the edge is looked; nothing else may lie there. Cut to 0.8 radii.
        pixels: "averages" if each pixel holds the mean over its square, whose blur is then divided out; a reconstruction
            computes its pixels at their centres: "samples".
        seed: of the bootstrap over the images.

    Measured without noise, pixels of 0.5 and 0.7 mm: within 0.003 up to f10 for Gaussian and cosine transfers at radii of 4, 6 and
    12 mm; for a sharp kernel (TTF up to 1.17) whose overshoot outlasts the reach, 0.04 at 4 mm, 0.007 at 6 and 0.002 at 12.

    Shape: images_hu (n, y, x), slices along the cylinder or repeats, all at the same place.
    Raises: DataError if the insert is not wholly in the image, is under five pixels wide, holds NaN, or no edge is found.
    Source: Richard, Husarik, Yadava, Murphy and Samei (2012); the name and the use in AAPM Report 233 (2019).
    """
    reach = min(reach_mm, REACH_OF_RADIUS * radius_mm)
    _check(images_hu, centre, radius_mm=radius_mm, pixel_mm=pixel_mm, reach_mm=reach)
    images = np.asarray(images_hu, dtype=np.float64)
    circle = _find_circle(images.mean(axis=0), centre, radius_mm=radius_mm, pixel_mm=pixel_mm, reach_mm=reach)
    r = _distance_mm(images.shape[1:], circle.row, circle.column, pixel_mm)
    contrast, noise = _contrast_and_noise(images, r - circle.radius_mm, reach)
    bin_mm = BIN_PIXELS * pixel_mm
    edges = _edge_profiles(images, r, circle.radius_mm, reach_mm=reach, bin_mm=bin_mm)
    frequency = np.arange(0, 1 / pixel_mm, FREQUENCY_STEP_PER_MM)
    correction = _blur_of_measuring(frequency, pixel_mm, pixels)

    def transfer(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return _transfer_of_edge(weights @ edges, frequency, radius_mm=circle.radius_mm, bin_mm=bin_mm) / correction

    n = len(images)
    ttf = transfer(np.full(n, 1 / n))
    total_cnr = abs(contrast) / noise * np.sqrt(n) if noise > 0 else float("inf")
    f50, f10 = _falls_to(0.5, frequency, ttf), _falls_to(0.1, frequency, ttf)
    interval = None
    if n >= FEWEST_IMAGES:
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) / n
        interval = _interval(frequency, np.stack([transfer(weights) for weights in drawn]))
    return TTF(
        frequency_per_mm=frequency,
        ttf=ttf,
        contrast_hu=contrast,
        noise_hu=noise,
        total_cnr=float(total_cnr),
        f50_per_mm=f50,
        f10_per_mm=f10,
        centre=(circle.row, circle.column),
        radius_mm=circle.radius_mm,
        n_images=n,
        interval=interval,
        warnings=_warnings(float(total_cnr), circle, reach_mm=reach, f50=f50, f10=f10, radius_mm=radius_mm),
    )


def _check(images_hu: NDArray, centre: tuple[float, float], *, radius_mm: float, pixel_mm: float, reach_mm: float) -> None:
    if images_hu.ndim != 3 or len(images_hu) == 0:
        raise DataError(f"expected images of shape (n, y, x), got {images_hu.shape}")
    if not (0 < pixel_mm < np.inf and 0 < radius_mm < np.inf and reach_mm > 0):
        raise DataError(f"expected positive lengths, got pixel {pixel_mm} mm, radius {radius_mm} mm, reach {reach_mm} mm")
    if radius_mm < 2.5 * pixel_mm:
        raise DataError(
            f"an insert of radius {radius_mm} mm has under five pixels of {pixel_mm} mm across; use a smaller field of view"
        )
    room = min(*centre, *(n - 1 - c for n, c in zip(images_hu.shape[1:], centre, strict=True))) * pixel_mm
    if room < radius_mm + reach_mm:
        raise DataError(
            f"the insert needs {radius_mm + reach_mm:.1f} mm around its centre, the image has {room:.1f}; give a wider one"
        )
    if not np.isfinite(images_hu).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(images_hu))} pixels are NaN or infinite; a transfer needs finite HU")


def _distance_mm(shape: tuple[int, ...], row: float, column: float, pixel_mm: float) -> NDArray[np.float64]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot(y - row, x - column) * pixel_mm)


def _find_circle(
    mean_hu: NDArray[np.float64], centre: tuple[float, float], *, radius_mm: float, pixel_mm: float, reach_mm: float
) -> _Circle:
    """The disc with a Gaussian edge that fits the image best. Twice: the second time the pixels around the right place.

    An edge that is no Gaussian is fitted less well, but as it is the same all around, the centre does not move.
    """
    circle = _Circle(*centre, radius_mm, pixel_mm)
    for extra_mm in (radius_mm / 2, 0.0):
        near = _distance_mm(mean_hu.shape, circle.row, circle.column, pixel_mm) <= circle.radius_mm + reach_mm + extra_mm
        circle = _fit_circle(mean_hu, near, circle, pixel_mm)
        off = np.hypot(circle.row - centre[0], circle.column - centre[1]) * pixel_mm
        if not (off < radius_mm and 0.5 < circle.radius_mm / radius_mm < 1.5):
            raise DataError(
                f"no circle of radius {radius_mm} mm near row {centre[0]:.1f}, column {centre[1]:.1f}: the best has "
                f"{circle.radius_mm:.1f} mm, {off:.1f} mm away; give a better centre, or more images against noise"
            )
    if circle.radius_mm <= reach_mm - pixel_mm:
        raise DataError(
            f"the circle found has a radius of {circle.radius_mm:.1f} mm, and its edge is followed for {reach_mm:g} mm to "
            "either side; give a smaller reach_mm, or more images against noise"
        )
    return circle


def _fit_circle(mean_hu: NDArray[np.float64], near: NDArray[np.bool_], start: _Circle, pixel_mm: float) -> _Circle:
    rows, columns = np.nonzero(near)
    hu = mean_hu[near]

    def residual(p: NDArray[np.float64]) -> NDArray[np.float64]:
        r = np.hypot(rows - p[0], columns - p[1]) * pixel_mm
        inside = (1 - erf((r - p[2]) / (np.sqrt(2) * p[3]))) / 2
        design = np.stack([inside, np.ones_like(inside)], axis=1)
        # Both levels enter linearly: solved for at each step, which leaves four numbers to search.
        levels = np.linalg.lstsq(design, hu, rcond=None)[0]
        return np.asarray(design @ levels - hu)

    least = 0.2 * pixel_mm
    first = [start.row, start.column, start.radius_mm, max(start.blur_mm, 2 * least)]
    reach = start.radius_mm / pixel_mm
    fit = least_squares(
        residual,
        first,
        bounds=(
            [start.row - reach, start.column - reach, 0.3 * start.radius_mm, least],
            [start.row + reach, start.column + reach, 2 * start.radius_mm, 2 * start.radius_mm],
        ),
        x_scale=[1, 1, pixel_mm, pixel_mm],
    )
    return _Circle(*(float(v) for v in fit.x))


def _contrast_and_noise(images: NDArray[np.float64], beyond_edge_mm: NDArray[np.float64], reach_mm: float) -> tuple[float, float]:
    """Contrast of the plateaus, and the standard deviation of one image in the outer one. The half next to the edge is left out."""
    outer = (beyond_edge_mm > reach_mm / 2) & (beyond_edge_mm <= reach_mm)
    inner = beyond_edge_mm < -reach_mm / 2
    contrast = images[:, inner].mean() - images[:, outer].mean()
    return float(contrast), float(np.sqrt(images[:, outer].var(axis=1, ddof=1).mean()))


def _edge_profiles(
    images: NDArray[np.float64], r: NDArray[np.float64], radius_mm: float, *, reach_mm: float, bin_mm: float
) -> NDArray[np.float64]:
    """Each image averaged over rings one bin wide around the edge; a ring without a pixel is interpolated. Shape: (n, bin)."""
    n_bins = 2 * int(reach_mm / bin_mm)
    position = (r - radius_mm) / bin_mm + n_bins / 2
    bin_of = np.floor(position).astype(np.int64)
    inside = (bin_of >= 0) & (bin_of < n_bins)
    members = np.bincount(bin_of[inside], minlength=n_bins)
    sums = np.stack([np.bincount(bin_of[inside], image[inside], n_bins) for image in images])
    filled = members > 0
    # Where its pixels lie in a bin, not its middle, is where its mean belongs.
    place = np.bincount(bin_of[inside], position[inside], n_bins)[filled] / members[filled]
    middle = np.arange(n_bins) + 0.5
    return np.stack([np.interp(middle, place, mean) for mean in sums[:, filled] / members[filled]])


def _transfer_of_edge(
    edge: NDArray[np.float64], frequency: NDArray[np.float64], *, radius_mm: float, bin_mm: float
) -> NDArray[np.float64]:
    x = (np.arange(1, len(edge)) - len(edge) / 2) * bin_mm
    line = np.diff(edge) * np.sqrt((radius_mm + x) / radius_mm) * tukey(len(edge) - 1, TAPER)
    spectrum = np.exp(-2j * np.pi * np.outer(frequency, x)) @ line
    if abs(spectrum[0]) < 1e-12 * max(np.abs(line).sum(), 1e-300):
        raise DataError("the edge has no contrast; choose an insert that differs from what surrounds it")
    spectrum = spectrum / spectrum[0].real
    # The edge's place to a fraction of a bin, from the phase where the transfer is strong.
    strong = np.cumprod(np.abs(spectrum) > 0.5).astype(bool)
    weight = np.abs(spectrum[strong]) ** 2 * frequency[strong]
    phase = np.unwrap(np.angle(spectrum[strong]))
    slope = (weight @ phase) / (weight @ frequency[strong]) if strong.sum() > 1 else 0.0
    return np.asarray((spectrum * np.exp(-1j * slope * frequency)).real)


def _blur_of_measuring(frequency: NDArray[np.float64], pixel_mm: float, pixels: Pixels) -> NDArray[np.float64]:
    """What binning and differencing, and pixels that are averages, do to each frequency; at least 0.1."""
    blur = np.sinc(frequency * BIN_PIXELS * pixel_mm) ** 2
    if pixels == "averages":
        angle = (np.arange(90) + 0.5) * np.pi / 180
        across, along = (np.outer(frequency * pixel_mm, part(angle)) for part in (np.cos, np.sin))
        blur = blur * (np.sinc(across) * np.sinc(along)).mean(axis=1)
    return np.asarray(np.maximum(blur, 0.1))


def _falls_to(level: float, frequency: NDArray[np.float64], ttf: NDArray[np.float64]) -> float:
    below = np.flatnonzero(ttf <= level)
    if not len(below) or below[0] == 0:
        return float("nan")
    i = below[0]
    return float(np.interp(-level, -ttf[i - 1 : i + 1], frequency[i - 1 : i + 1]))


def _interval(frequency: NDArray[np.float64], resampled: NDArray[np.float64]) -> TTFInterval:
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    limits = []
    for level in (0.5, 0.1):
        falls = np.array([_falls_to(level, frequency, ttf) for ttf in resampled])
        limits += list(np.quantile(falls, [0.025, 0.975])) if np.isfinite(falls).all() else [float("nan")] * 2
    return TTFInterval(low, high, *(float(limit) for limit in limits))


def _warnings(total_cnr: float, circle: _Circle, *, reach_mm: float, f50: float, f10: float, radius_mm: float) -> tuple[str, ...]:
    found = []
    if total_cnr < LEAST_TOTAL_CNR:
        found.append(f"total CNR {total_cnr:.1f} is under {LEAST_TOTAL_CNR:g}: the TTF is noisy; average more images")
    if 3 * circle.blur_mm > reach_mm * (1 - TAPER / 2):
        found.append(
            f"the edge is blurred by {circle.blur_mm:.2f} mm, too wide for a reach of {reach_mm:.1f} mm: the TTF is too high"
        )
    if abs(circle.radius_mm / radius_mm - 1) > 0.1:
        found.append(f"the insert found has radius {circle.radius_mm:.2f} mm, expected {radius_mm:.2f} mm")
    if not np.isfinite(f50):
        found.append("the TTF does not fall to 0.5 below one over the pixel")
    elif not np.isfinite(f10):
        found.append("the TTF does not fall to 0.1 below one over the pixel")
    return tuple(found)
