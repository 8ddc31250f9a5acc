"""The reconstruction kernel of a scanner, measured from its noise.

Photon noise is the same in every detector cell and independent between them, so the noise of filtered backprojection has the
power N(f) ∝ f · W(f)²: the ramp once (twice from the filter, less one for the density of the Fourier lines) and the square of the
kernel W. Hence W ∝ √(N/f), in whatever direction one looks (Riederer, Pelc and Chesler 1978, Phys Med Biol 23:446). Best measured
from two scans of one object, whose difference holds noise and no anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.errors import ConfigError, DataError, ScanError
from finegrain.files import write_whole
from finegrain.noise_power import RadialNPS, mean_nps, periodograms, radial_nps
from finegrain.scan.privacy import shown
from finegrain.scan.volume import CTVolume
from finegrain.simulate.fbp import KERNELS, ReconKernel

MODES = {"paired": "two doses of one acquisition, ", "repeated": "two acquisitions, ", "single": ""}
"""What two scans are to each other, and in words: quarter and full dose of one acquisition; two acquisitions; only one scan."""

ROI_SIZES = (64, 32)
"""Sides of the ROIs in pixels; the smaller where too few of the larger fit. Ours."""
MIN_ROIS = 8
STEP_PER_MM = 0.04
"""Distance of the points of a measured kernel in cycles/mm, unless the ROI is too small for it."""
TOP_OF_NYQUIST = 1.2
"""Frequency up to which W is measured, over the Nyquist frequency along an axis of the pixel grid; only diagonals reach so far."""
AXIS_OF_NYQUIST = 0.9
"""The same along either axis: nearer to Nyquist, what is folded back is as strong as what is there."""
SINGLE_FROM_PER_MM = 0.2
"""Below this a single scan shows its anatomy, not its noise."""
FIT_TO_PER_MM = 0.3
"""The curve through the low frequencies that gives W(0) uses points up to here."""
N_BOOTSTRAP = 200
OVERLAP_ERROR = 1.06
"""Neighbouring ROIs share half their pixels; tapered by Hann, their periodograms correlate by (1/6)² = 0.028 along an axis
(Welch 1967), which four neighbours turn into 1.06 times the standard error of as many separate ROIs."""


@dataclass(frozen=True)
class NoiseImages:
    """Images of noise alone, or of little else.

    Attributes:
        images: HU, shape (slice, y, x).
        usable: where there is body and nothing that is not noise, same shape.
        pixel_mm: pixel size.
        white_hu2: variance in HU² of the white noise that rounding to whole HU adds.
        low_trust_per_mm: frequency below which the images hold more than noise.
        origin: what they are, for whoever reads the kernel later.
    """

    images: NDArray[np.floating]
    usable: NDArray[np.bool_]
    pixel_mm: float
    white_hu2: float = 0.0
    low_trust_per_mm: float = 0.0
    origin: str = "noise images"


@dataclass(frozen=True)
class MeasuredKernel:
    """A measured kernel and how well it is known.

    Attributes:
        kernel: the kernel, points above `measured_to_per_mm` extrapolated.
        standard_error: of each point of the kernel, W(0) = 1 being exact; NaN where it is extrapolated.
        measured_to_per_mm: highest frequency that was measured, cycles/mm.
        n_roi: ROIs that were averaged; they overlap by half.
        roi_size: their side in pixels.
        w50_per_mm, w10_per_mm: where W falls to 0.5 and 0.1, cycles/mm. The scanner's own MTF lies lower: it also holds focal
            spot and detector.
        nps: radial noise power of the ROIs, with its peak and mean frequency.
    """

    kernel: ReconKernel
    standard_error: tuple[float, ...]
    measured_to_per_mm: float
    n_roi: int
    roi_size: int
    w50_per_mm: float
    w10_per_mm: float
    nps: RadialNPS

    @property
    def n_measured(self) -> int:
        """How many points were measured, without W(0)."""
        return int(np.isfinite(self.standard_error).sum()) - 1


# --- noise images from scans ------------------------------------------------------------------------------------------


def noise_of_two(a: CTVolume, b: CTVolume) -> NoiseImages:
    """Noise of one image from two scans with the same anatomy, matched by slice position: difference/√2.

    Raises: ScanError, with numbers, if the slices of the two do not match one to one.
    """
    order = _matching(a, b)
    other, padding = b.hu[order], a.padding | b.padding[order]
    return NoiseImages(
        images=(a.hu - other) / np.float32(np.sqrt(2)),
        usable=_smooth_body((a.hu + other) / 2, a.pixel_mm[0], low=-200, high=300, steepest_per_mm=40) & ~padding,
        pixel_mm=_square_pixel(a),
        white_hu2=_rounding_hu2(a, b),
        origin=f"the difference of two scans, {len(a)} slices",
    )


def noise_of_one(volume: CTVolume) -> NoiseImages:
    """The soft tissue of a single scan, a stand-in for noise at frequencies above `SINGLE_FROM_PER_MM`."""
    return NoiseImages(
        images=volume.hu,
        usable=_smooth_body(volume.hu, volume.pixel_mm[0], low=-150, high=200, steepest_per_mm=20) & ~volume.padding,
        pixel_mm=_square_pixel(volume),
        white_hu2=_rounding_hu2(volume),
        low_trust_per_mm=SINGLE_FROM_PER_MM,
        origin=f"soft tissue of a single scan, {len(volume)} slices",
    )


def kernel_of_scans(a: CTVolume, b: CTVolume | None = None, *, name: str, mode: str | None = None) -> MeasuredKernel:
    """The kernel that one or two scans were reconstructed with.

    Args:
        mode: what two scans are to each other (`MODES`); "paired" if not given, "single" for one scan.

    Raises: ConfigError if the mode needs another number of scans; ScanError if two do not match, in place or kernel; DataError for
        too little body.
    """
    mode = mode or ("single" if b is None else "paired")
    if mode not in MODES:
        raise ConfigError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")
    if (b is None) != (mode == "single"):
        raise ConfigError(f"mode {mode!r} needs {'one scan' if mode == 'single' else 'two scans'}, got {1 if b is None else 2}")
    named = [str(scan.acquisition.get("ConvolutionKernel") or "") for scan in (a, b) if scan is not None]
    stated = [shown(kernel) for kernel in named if kernel]
    if len(set(stated)) > 1:
        raise ScanError(f"the two scans have the kernels {stated[0]} and {stated[1]}, expected one; measure each by itself")
    noise = noise_of_one(a) if b is None else noise_of_two(a, b)
    return fit_kernel(replace(noise, origin=MODES[mode] + noise.origin), name=name)


def _matching(a: CTVolume, b: CTVolume) -> list[int]:
    """For each slice of `a` the slice of `b` at the same place."""
    if a.hu.shape[1:] != b.hu.shape[1:] or not np.allclose(a.pixel_mm, b.pixel_mm, rtol=1e-4):
        raise ScanError(
            f"the two scans have different grids: {_grid(a)} and {_grid(b)}; give two reconstructions with the same field of view"
        )
    if not np.allclose(a.orientation, b.orientation, atol=1e-3):
        raise ScanError(f"the two scans are oriented differently: {a.orientation} and {b.orientation}; give two of one acquisition")
    distance = np.linalg.norm(a.positions_mm[:, None] - b.positions_mm[None], axis=-1)
    nearest = distance.argmin(axis=1)
    matched = distance[np.arange(len(a)), nearest] < 0.1
    if len(a) != len(b) or not matched.all():
        worst = distance.min(axis=1).max()
        raise ScanError(
            f"slices do not match: {int(matched.sum())} of {len(a)} and {len(b)} lie at the same place, the farthest is"
            f" {worst:.2f} mm from its nearest, expected all within 0.1 mm; give scans of the same slices"
        )
    return [int(index) for index in nearest]


def _grid(volume: CTVolume) -> str:
    return f"{volume.hu.shape[1]} × {volume.hu.shape[2]} pixels of {volume.pixel_mm[0]:.4g} mm"


def _square_pixel(volume: CTVolume) -> float:
    y_mm, x_mm = volume.pixel_mm
    if not volume.has_square_pixels:
        raise ScanError(f"measuring a kernel needs square pixels, got {y_mm} × {x_mm} mm; give the scanner's own images")
    return float(y_mm)


def _smooth_body(
    hu: NDArray[np.floating], pixel_mm: float, *, low: float, high: float, steepest_per_mm: float
) -> NDArray[np.bool_]:
    """Where the HU, smoothed by 3 mm, lie within an interval and change slowly: body without lung, bone, air and their edges.

    Shape: (z, y, x).
    """
    body = np.empty(hu.shape, dtype=bool)
    for number, image in enumerate(hu):
        smooth = ndimage.gaussian_filter(np.asarray(image, dtype=np.float32), 3 / pixel_mm)
        slope = np.hypot(*np.gradient(smooth, pixel_mm))
        body[number] = (smooth > low) & (smooth < high) & (slope < steepest_per_mm)
    return body


def _rounding_hu2(*volumes: CTVolume) -> float:
    """Variance that rounding to whole HU adds to a scan, 1/12 HU²; 0 if it was not rounded."""
    whole = all(np.array_equal(volume.hu[0], np.rint(volume.hu[0])) for volume in volumes)
    return 1 / 12 if whole else 0.0


# --- the fit ----------------------------------------------------------------------------------------------------------


def measure_kernel(noise_images: NDArray[np.floating], *, pixel_mm: float, name: str, origin: str) -> MeasuredKernel:
    """The kernel whose ramp-filtered noise fills the images, everywhere.

    Shape: noise_images (slice, y, x), HU; their level is free. See `fit_kernel`.
    """
    everywhere = np.ones(noise_images.shape, dtype=bool)
    return fit_kernel(NoiseImages(noise_images, everywhere, pixel_mm, origin=origin), name=name)


def fit_kernel(noise: NoiseImages, *, name: str) -> MeasuredKernel:
    """W(f) = √(N(f)/f) of noise images, normalised to W(0) = 1, with the standard error of every point.

    ROIs that overlap by half lose their plane and are tapered (Welch 1967), which keeps the strong low frequencies of a soft
    kernel from leaking into its weak high ones. What detrending, taper, rings and the folding at Nyquist do to N(f) is computed
    for a kernel with the W found so far and divided out, until it no longer changes. The diagonals of the pixel grid reach √2
    times farther than its axes, so that W is measured a little beyond Nyquist; from there it goes on with its last slope,
    monotone, to zero. W(0) comes from an even curve, flat at zero, through ln W at low frequencies, and a kernel with a bend
    below 0.1 cycles/mm is wrong by that bend at all others (5 % for B30f as it is tabled here). Nothing else is assumed: a kernel
    that enhances edges rises above 1.

    On simulated noise of smooth kernels the mean of many measurements is true to 0.5 %, and the standard errors to 20 %. From a
    single scan W comes out 5 to 20 % too low against two scans of the same kernel, for anatomy passes for noise; and a kernel that
    rises or falls steeply below 0.25 cycles/mm is wrong by that factor at all others. Then only its shape is to be believed.

    Raises: DataError if fewer than 8 ROIs lie in the usable part.
    """
    rois, image_of = _rois(noise)
    size, pixel_mm = rois.shape[-1], noise.pixel_mm
    taper = _hann(size)
    power = periodograms(rois, pixel_mm=pixel_mm, detrend="linear", taper=taper) - noise.white_hu2 * pixel_mm**2
    if noise.low_trust_per_mm:
        calm = _calmest(power, pixel_mm, noise.low_trust_per_mm)
        power, image_of = power[calm], image_of[calm]
    level = power.mean()
    rings = _Rings.of(size, pixel_mm, lowest_per_mm=noise.low_trust_per_mm)
    ring_power = rings.means(power / _level_of_image(power, image_of)[:, None, None])
    f = rings.frequency_per_mm
    shape, gain = _unfolded(ring_power.mean(axis=0), rings, size, pixel_mm, taper)
    error = _relative_error(ring_power)
    w = shape / _at_zero(f, shape, error)
    last = _last_significant(w)
    f, w, gain, ring_power, error = f[:last], w[:last], gain[:last], ring_power[:, :last], error[:last]
    sigma = _normalised_error(ring_power, gain, f, error)
    tail_f, tail_w = _tail(f, w, known_end=last < len(rings.frequency_per_mm))
    kernel = ReconKernel(
        name,
        tuple(np.round([0.0, *f, *tail_f], 5).tolist()),
        tuple(np.round([1.0, *w, *tail_w], 5).tolist()),
        _origin(noise, len(power), size, f),
    )
    nps = radial_nps(mean_nps(power / power.mean() * level, pixel_mm=pixel_mm))
    return MeasuredKernel(
        kernel=kernel,
        standard_error=(0.0, *sigma.tolist(), *[float("nan")] * len(tail_f)),
        measured_to_per_mm=float(f[-1]),
        n_roi=len(power),
        roi_size=size,
        w50_per_mm=_falls_to(kernel, 0.5),
        w10_per_mm=_falls_to(kernel, 0.1),
        nps=nps,
    )


def _origin(noise: NoiseImages, n_roi: int, size: int, f: NDArray[np.float64]) -> str:
    below = f"; below {f[0]:.2f} cycles/mm extrapolated, where anatomy outweighs noise" if noise.low_trust_per_mm else ""
    return (
        f"measured: √(NPS(f)/f) of {noise.origin}, {n_roi} ROIs of {size} × {size} pixels of {noise.pixel_mm:.3g} mm"
        f"{below}; above {f[-1]:.2f} cycles/mm extrapolated"
    )


def _rois(noise: NoiseImages) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """ROIs that lie in the usable part, overlapping by half, and the image that each is from. Shape: (n, y, x), (n,)."""
    n = 0
    # With anatomy in the images small ROIs are better: they fit between its edges, and low frequencies are lost anyway.
    for size in ROI_SIZES[-1:] if noise.low_trust_per_mm else ROI_SIZES:
        found, image_of = [], []
        for number, (image, usable) in enumerate(zip(noise.images, noise.usable, strict=True)):
            places = [
                np.s_[row : row + size, column : column + size]
                for row in range(0, image.shape[0] - size + 1, size // 2)
                for column in range(0, image.shape[1] - size + 1, size // 2)
            ]
            # A few pixels of a vessel or of fat at the rim of an ROI are tapered away; a lung is not.
            inside = [place for place in places if usable[place].mean() > 0.95]
            found += [np.asarray(image[place], dtype=np.float64) for place in inside]
            image_of += [number] * len(inside)
        n = len(found)
        if n >= MIN_ROIS:
            return np.stack(found), np.array(image_of)
    raise DataError(
        f"only {n} squares of {ROI_SIZES[-1] * noise.pixel_mm:.0f} mm of smooth soft tissue in {len(noise.images)} slices, expected"
        f" at least {MIN_ROIS}; give more slices, of abdomen or of a phantom"
    )


def _calmest(power: NDArray[np.float64], pixel_mm: float, low_trust_per_mm: float) -> NDArray[np.bool_]:
    """The twentieth of the ROIs with the least power at frequencies not trusted, against those that are: no edges there."""
    radius = _radius(power.shape[-1], pixel_mm)
    low = power[:, (radius > 0) & (radius < 0.75 * low_trust_per_mm)].mean(axis=1)
    high = power[:, radius > low_trust_per_mm].mean(axis=1)
    ratio = low / np.maximum(high, 1e-12)
    return ratio <= max(np.quantile(ratio, 0.05), np.sort(ratio)[min(4 * MIN_ROIS, len(ratio)) - 1])


def _level_of_image(power: NDArray[np.float64], image_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean power of the image of each ROI, so that a noisy slice does not outweigh the others."""
    levels = {int(number): power[image_of == number].mean() for number in np.unique(image_of)}
    if min(levels.values()) <= 0:
        raise DataError(
            "an image holds no noise beyond the rounding of its HU, so there is no kernel to measure; give images as reconstructed"
        )
    return np.array([levels[int(number)] for number in image_of])


def _radius(size: int, pixel_mm: float) -> NDArray[np.float64]:
    """Radial frequency of each element of an FFT, cycles/mm. Shape: (y, x)."""
    f = np.fft.fftfreq(size, pixel_mm)
    return np.hypot(f[:, None], f[None, :])


def _hann(size: int) -> NDArray[np.float64]:
    line = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return np.outer(line, line)


@dataclass(frozen=True)
class _Rings:
    """Which elements of an FFT of an ROI belong to which point of the kernel."""

    member: NDArray[np.float64]
    """Share of each element (column, flattened) in each ring (row)."""
    frequency_per_mm: NDArray[np.float64]

    @classmethod
    def of(cls, size: int, pixel_mm: float, *, lowest_per_mm: float) -> _Rings:
        f, bin_mm, nyquist = np.abs(np.fft.fftfreq(size, pixel_mm)), 1 / (size * pixel_mm), 0.5 / pixel_mm
        radius = _radius(size, pixel_mm)
        chosen = np.maximum(f[:, None], f[None, :]) <= AXIS_OF_NYQUIST * nyquist
        width = max(bin_mm, STEP_PER_MM)
        ring = np.round(radius / width).astype(np.int64)
        # Below two and a half bins an uneven bias of low dose would count as noise: a few HU over an ROI, no plane.
        chosen &= radius > 2.4 * bin_mm
        first = int(np.ceil(max(2.4 * bin_mm, lowest_per_mm) / width + 0.5 - 1e-9))
        last = int(np.floor(TOP_OF_NYQUIST * nyquist / width))
        members = [((ring == k) & chosen).ravel() for k in range(first, last + 1)]
        member = np.array([row / row.sum() for row in members if row.any()])
        return cls(member, member @ radius.ravel())

    def means(self, power: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean power in each ring. Shape: (..., y, x) → (..., ring)."""
        return power.reshape(*power.shape[:-2], -1) @ self.member.T


def _unfolded(
    measured: NDArray[np.float64], rings: _Rings, size: int, pixel_mm: float, taper: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """W, not yet normalised, and the expected ring power for W = 1 at each ring: measured = gain · W². Shape: (ring,) each."""
    f = rings.frequency_per_mm
    gain = f.copy()
    for _ in range(6):
        # The corrections vary slowly. Computed from W as scattered as it is, they would sharpen the scatter.
        w = _smoothed(np.sqrt(np.maximum(measured, 0) / gain))
        expected = rings.means(_expected_power(f, w, size, pixel_mm, taper))
        # Where nothing is left, the ratio of two zeros says nothing: the plain ramp stands in.
        known = w > 1e-3 * w.max()
        gain = np.where(known, expected / np.maximum(w, 1e-12) ** 2, f)
    return np.sqrt(np.maximum(measured, 0) / gain), gain


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two passes of (1, 2, 1)/4, straight on at the ends."""
    for _ in range(2):
        ends = 2 * values[0] - values[1], 2 * values[-1] - values[-2]
        values = np.convolve(np.concatenate(([ends[0]], values, [ends[1]])), (0.25, 0.5, 0.25), mode="valid")
    return np.maximum(values, 0)


def _expected_power(
    f: NDArray[np.float64], w: NDArray[np.float64], size: int, pixel_mm: float, taper: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean periodogram of tapered ROIs of noise with power f·W(f)² that was sampled on the pixel grid. Shape: (y, x).

    The spectrum is folded at Nyquist and convolved with that of the taper: in space, the autocovariance times the
    autocorrelation of the taper.
    """
    fine = 4 * size
    axis = np.fft.fftfreq(fine, pixel_mm)
    tail_f, tail_w = _tail(f, w, known_end=False)
    at, value = np.concatenate((f, tail_f)), np.concatenate((w, tail_w))
    folded = np.zeros((fine, fine))
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            radius = np.hypot(axis[:, None] + y / pixel_mm, axis[None, :] + x / pixel_mm)
            folded += radius * np.interp(radius, at, value, right=0.0) ** 2
    covariance = np.fft.ifft2(folded).real
    tapered = np.zeros((fine, fine))
    tapered[:size, :size] = taper / np.sqrt(np.mean(taper**2)) / size
    correlation = np.fft.ifft2(np.abs(np.fft.fft2(tapered)) ** 2).real
    power = np.fft.fft2(covariance * correlation).real[::4, ::4]
    # The plane that each ROI loses: x − Q Qᵀx for an orthonormal Q takes −2 Re⟨t C Q, t Q⟩ + t Q (QᵀCQ) (t Q)ᵀ from the power.
    planes = np.zeros((3, fine, fine))
    planes[:, :size, :size] = _planes(size)
    smeared = np.fft.ifft2(np.fft.fft2(planes) * folded).real[:, :size, :size]
    own = np.fft.fft2(tapered[:size, :size] * planes[:, :size, :size])
    power -= 2 * (np.fft.fft2(tapered[:size, :size] * smeared) * own.conj()).real.sum(axis=0)
    inner = np.einsum("iyx,jyx->ij", planes[:, :size, :size], smeared)
    return power + np.einsum("iyx,ij,jyx->yx", own, inner, own.conj()).real


def _planes(size: int) -> NDArray[np.float64]:
    """Constant and slopes over a square, orthonormal. Shape: (3, y, x)."""
    line = np.linspace(-1, 1, size)
    planes = np.stack(np.broadcast_arrays(np.ones((size, size)), line[:, None], line[None, :]))
    return planes / np.sqrt((planes**2).sum(axis=(1, 2), keepdims=True))


def _last_significant(w: NDArray[np.float64]) -> int:
    """How many points stand before W first falls below 0.015: beyond there is nothing but other noise."""
    low = np.flatnonzero(w < 0.015)
    return max(int(low[0]) if len(low) else len(w), 5)


def _relative_error(ring_power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of each W over W, from the scatter of the ROIs about their common shape."""
    mean = ring_power.mean(axis=0)
    own = ring_power.sum(axis=1, keepdims=True) / mean.sum()
    return 0.5 * OVERLAP_ERROR * (ring_power - own * mean).std(axis=0) / np.sqrt(len(ring_power)) / np.maximum(mean, 1e-12)


def _at_zero(f: NDArray[np.float64], w: NDArray[np.float64], error: NDArray[np.float64]) -> float:
    """W(0) by an even curve, flat at zero: ln W = a + b f² + c f⁴, the last term only if f starts low enough to tell."""
    n = max(int(np.searchsorted(f, FIT_TO_PER_MM, side="right")), 5)
    order = 2 if f[0] < 0.12 else 1
    weight = 1 / np.maximum(error[:n], 1e-4)
    terms = np.stack([f[:n] ** (2 * k) for k in range(order + 1)], axis=1)
    solution, *_ = np.linalg.lstsq(terms * weight[:, None], np.log(np.maximum(w[:n], 1e-6)) * weight, rcond=None)
    return float(np.exp(solution[0]))


def _normalised_error(
    ring_power: NDArray[np.float64], gain: NDArray[np.float64], f: NDArray[np.float64], error: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Standard error of each normalised W, W(0) refitted each time, by bootstrap over the ROIs. Shape: (ring,)."""
    n = len(ring_power)
    generator = np.random.default_rng(0)  # an error bar that changed from call to call would be no help
    share = generator.multinomial(n, np.full(n, 1 / n), N_BOOTSTRAP) / n
    drawn = np.sqrt(np.maximum(share @ ring_power, 0) / gain)
    return OVERLAP_ERROR * np.std([w / _at_zero(f, w, error) for w in drawn], axis=0)


def _tail(f: NDArray[np.float64], w: NDArray[np.float64], *, known_end: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies and values that lead the measured W on with its slope, monotone, to zero."""
    step = f[-1] - f[-2]
    if known_end or w[-1] <= 0.01 * w.max():
        return np.array([f[-1] + step]), np.array([0.0])
    n = min(4, len(f))
    slope = max(-float(np.polyfit(f[-n:], w[-n:], 1)[0]), 1e-6)
    end = float(np.clip(f[-1] + 1.5 * w[-1] / slope, f[-1] + 2 * step, 2 * f[-1]))
    t = np.array([0.25, 0.5, 0.75, 1.0])
    exponent = max(1.0, slope * (end - f[-1]) / w[-1])
    return f[-1] + t * (end - f[-1]), w[-1] * (1 - t) ** exponent


def _falls_to(kernel: ReconKernel, value: float) -> float:
    """The highest frequency at which W is still `value`, cycles/mm."""
    f = np.linspace(0, kernel.cutoff_per_mm, 2001)
    above = np.flatnonzero(kernel(f) >= value)
    return float(f[above[-1]])


# --- for people to look at --------------------------------------------------------------------------------------------


def measured_table(measured: MeasuredKernel) -> list[list[str]]:
    """The points of a measured kernel and the numbers that sum it up, as rows of text; the first is the heading."""
    kernel, nps = measured.kernel, measured.nps
    points = zip(kernel.frequency_per_mm, kernel.transfer, measured.standard_error, strict=True)
    return [
        ["cycles/mm", "W", "standard error"],
        *([f"{f:.3f}", f"{w:.3f}", f"{error:.3f}" if np.isfinite(error) else "extrapolated"] for f, w, error in points),
        ["W = 0.5", f"{measured.w50_per_mm:.3f}", ""],
        ["W = 0.1", f"{measured.w10_per_mm:.3f}", ""],
        ["NPS, peak", f"{nps.peak_frequency:.3f}", ""],
        ["NPS, mean", f"{nps.mean_frequency:.3f}", ""],
    ]


def as_figure_data(measured: MeasuredKernel) -> dict[str, Any]:
    """What `figures.kernel_figure` draws: the kernel beside all that are known by name."""
    kernel = measured.kernel
    f = np.linspace(0, max(1.0, kernel.cutoff_per_mm), 201)
    return {
        "name": kernel.name,
        "measured": (np.array(kernel.frequency_per_mm), np.array(kernel.transfer), np.array(measured.standard_error)),
        "nps": (measured.nps.frequency_per_mm, measured.nps.power),
        "known": {name: (f, known(f)) for name, known in KERNELS.items() if name != "ramp"},
    }


# --- kernels as files -------------------------------------------------------------------------------------------------


def save_kernel(kernel: ReconKernel, path: Path) -> None:
    """Write a kernel as YAML that `load_kernel`, and `find_kernel` by its path, read back."""
    if Path(path).suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"a kernel is saved as YAML: expected a name that ends in .yaml or .yml, got {Path(path).name}")
    content = {
        "name": kernel.name,
        "origin": kernel.origin,
        "frequency_per_mm": [float(value) for value in kernel.frequency_per_mm],
        "transfer": [float(value) for value in kernel.transfer],
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_whole(Path(path), text)


def load_kernel(path: Path) -> ReconKernel:
    """The kernel in a YAML file with the keys name, origin, frequency_per_mm and transfer.

    Raises: ConfigError for a file that is not there or is no kernel.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"kernel file {path} cannot be read: {getattr(error, 'strerror', None) or 'not text'}; check it"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"kernel file {path} is no YAML: {str(error).splitlines()[0]}; write it with save_kernel") from None
    keys = ["name", "origin", "frequency_per_mm", "transfer"]
    if not isinstance(content, dict) or sorted(content) != sorted(keys):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(
            f"kernel file {path} should hold {', '.join(keys)}, got {found}; write it with `finegrain measure-kernel`"
        )
    return ReconKernel(
        str(content["name"]),
        _numbers(path, content["frequency_per_mm"]),
        _numbers(path, content["transfer"]),
        str(content["origin"]),
    )


def _numbers(path: Path, values: Any) -> tuple[float, ...]:
    good = isinstance(values, Sequence) and all(isinstance(v, int | float) and np.isfinite(v) for v in values)
    if not good:
        raise ConfigError(f"kernel file {path}: expected lists of finite numbers, got {str(values)[:60]}; correct the file")
    return tuple(float(value) for value in values)
