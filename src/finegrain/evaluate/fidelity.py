"""Fidelity: PSNR, SSIM and VIF under a named protocol, errors in HU, and the bias of CT numbers.

There is no default protocol: one and the same pair of images scores tens of decibels apart under those in use. A number
is worth nothing without the name of its protocol, and `PROTOCOLS` says what each name means and who uses it.

An image of NaN or infinity, or one that does not fit the other, is refused. Where there is nothing to measure (an empty
roi, no body in the slice, a constant reference that holds no information) the answer is NaN; equal images have a PSNR of
infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.regions import body_mask


@dataclass(frozen=True)
class Protocol:
    """All that a PSNR, an SSIM or a VIF depends on besides the two images.

    Attributes:
        name: stands in the key of every number, e.g. psnr_db[abdomen-40/400].
        low_hu, high_hu: both images are clipped to this interval; infinite where a source does not clip.
        description: what the protocol is, in words.
        source: who uses or defines it.
        mask: pixels that count: all, the body of the reference, or the circle inscribed in the slice.
        peak: data range of PSNR and SSIM: the interval's width, or the range of each reference by itself.
        unit: scale on which SSIM is taken: HU as they are, or the interval mapped to [0, 1]. PSNR does not depend on it; SSIM
            does, for it compares means and HU have a sign.
        ssim: "gaussian", weights of σ = 1.5 on 11 × 11 pixels, without the border that they overhang (Wang et al. 2004);
            "gaussian-zero-padded", the same with zeros beyond the image, border and all; "uniform", flat 7 × 7 with the
            sample covariance, the default of scikit-image.
        vif_low_hu, vif_high_hu: interval of VIF where it is not that of PSNR.
        vif_source: the image taken as the undistorted one in VIF; "reference" is right.
        caution: why not to choose it; empty where nothing speaks against it.
    """

    name: str
    low_hu: float
    high_hu: float
    description: str
    source: str = ""
    mask: Literal["all", "body", "circle"] = "all"
    peak: Literal["interval", "reference"] = "interval"
    unit: Literal["HU", "[0, 1]"] = "HU"
    ssim: Literal["gaussian", "gaussian-zero-padded", "uniform"] = "gaussian"
    vif_low_hu: float | None = None
    vif_high_hu: float | None = None
    vif_source: Literal["reference", "candidate"] = "reference"
    caution: str = ""

    def __post_init__(self) -> None:
        if not self.low_hu < self.high_hu:
            raise ConfigError(f"protocol {self.name!r} needs low < high, got [{self.low_hu:g}, {self.high_hu:g}] HU")
        if not np.isfinite(self.width_hu) and (self.peak == "interval" or self.unit == "[0, 1]"):
            raise ConfigError(f"protocol {self.name!r} has no finite interval; give low_hu and high_hu, or peak 'reference' in HU")

    @property
    def width_hu(self) -> float:
        """Width of the interval in HU: the data range where `peak` is "interval"."""
        return self.high_hu - self.low_hu

    def clip(self, hu: NDArray) -> NDArray[np.float64]:
        """HU clipped to the interval, in float64: float32 sums are good to 1e-4 only."""
        return np.clip(np.asarray(hu, dtype=np.float64), self.low_hu, self.high_hu)

    def data_range_hu(self, reference_hu: NDArray) -> float:
        """Data range in HU of PSNR and SSIM against this reference."""
        return self.width_hu if self.peak == "interval" else float(np.ptp(self.clip(reference_hu)))

    def mask_of(self, reference_hu: NDArray) -> NDArray[np.bool_] | None:
        """Pixels that count, (y, x), found on the reference; None for all."""
        if self.mask == "all":
            return None
        if reference_hu.ndim != 2:
            raise DataError(f"protocol {self.name!r} has a mask and needs one slice (y, x), got shape {reference_hu.shape}")
        return body_mask(reference_hu) if self.mask == "body" else _inscribed_circle(reference_hu.shape)


MAYO = "usual with the data of the AAPM–Mayo Low Dose CT Grand Challenge, McCollough et al. (2017)"
BENCHMARK = "ldct-benchmark 0.0.15, Eulig et al. (2024)"
RED_CNN = "measure.py of the public PyTorch RED-CNN (SSinyu), after Chen et al. (2017); CTformer follows it"
READING = "a common reading window; no source defines it for scores"


def _benchmark(name: str, low_hu: float, high_hu: float, description: str) -> Protocol:
    """A protocol of ldct-benchmark: scaled by DICOM's window formula, whose slope is 1/(width − 1), so 1 HU narrower.

    Its VIF is taken on [−1024, 1900] HU whatever the window, and its call gives the normal dose in the place of the
    distorted image.
    """
    return Protocol(
        name,
        low_hu,
        high_hu,
        description,
        BENCHMARK,
        unit="[0, 1]",
        ssim="uniform",
        vif_low_hu=-1024,
        vif_high_hu=1900,
        vif_source="candidate",
    )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("abdomen-40/400", -160, 240, "display window, centre 40, width 400 HU; usual for the Mayo abdomen pairs", MAYO),
        Protocol("chest--600/1500", -1350, 150, "lung display window, centre −600, width 1500 HU", READING),
        Protocol("mediastinum-50/350", -125, 225, "mediastinal display window, centre 50, width 350 HU", READING),
        Protocol("brain-40/80", 0, 80, "brain display window, centre 40, width 80 HU", READING),
        Protocol("bone-300/1500", -450, 1050, "bone display window, centre 300, width 1500 HU", READING),
        Protocol("full-range", -1024, 3071, "the 12-bit CT scale, width 4095 HU", "the range of 12-bit CT numbers"),
        Protocol("abdomen-40/400-body", -160, 240, "centre 40, width 400 HU, inside the body only", "ours", mask="body"),
        Protocol("full-range-circle", -1024, 3071, "the 12-bit scale inside the reconstruction circle only", "ours", mask="circle"),
        Protocol(
            "red-cnn", -160, 240, "centre 40, width 400 HU; SSIM with zeros around the image", RED_CNN, ssim="gaussian-zero-padded"
        ),
        Protocol(
            "red-cnn-norm-range",
            -1024,
            3072,
            "the training scale of RED-CNN and CTformer, [−1024, 3072] HU as [0, 1]",
            RED_CNN,
            unit="[0, 1]",
            ssim="gaussian-zero-padded",
            caution="four times the air and bone that readers look at: PSNR is high for any method",
        ),
        _benchmark("ldct-benchmark-chest", -1350, 149, "chest of ldct-benchmark, centre −600, width 1500 HU"),
        _benchmark("ldct-benchmark-abdomen", -150, 249, "abdomen of ldct-benchmark, centre 50, width 400 HU"),
        _benchmark("ldct-benchmark-neuro", 0, 79, "head of ldct-benchmark, centre 40, width 80 HU"),
        _benchmark(
            "ldct-benchmark-validation", -1024, 1900, "ldct-benchmark in training, and its RMSE: air to bone, width 2924 HU"
        ),
        Protocol(
            "own-range",
            -np.inf,
            np.inf,
            "unclipped, over the range of each reference slice by itself",
            "data_range = reference.max() − reference.min(), as in many scripts",
            peak="reference",
            caution="the score moves with the brightest pixel of the slice; no two slices share a scale",
        ),
    )
}
"""Every protocol by its name, with centre/width in HU where it is a display window; the name travels with each result."""


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. Raises: ConfigError that lists those there are."""
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


# --- what is compared --------------------------------------------------------------------------------------------------------


def _check(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray | None) -> None:
    if reference_hu.shape != candidate_hu.shape:
        raise DataError(f"reference of shape {reference_hu.shape} and candidate of {candidate_hu.shape} must agree")
    if roi is not None and roi.shape != reference_hu.shape:
        raise DataError(f"the roi of shape {roi.shape} does not fit images of {reference_hu.shape}")
    if roi is not None and roi.dtype != np.bool_:
        raise DataError(f"the roi must be boolean, got {roi.dtype}; compare it with a threshold first")
    for name, hu in (("reference", reference_hu), ("candidate", candidate_hu)):
        if not np.isfinite(hu).all():
            n_bad = int((~np.isfinite(hu)).sum())
            raise DataError(f"the {name} holds {n_bad} pixels that are NaN or infinite; expected finite HU, mend them first")


def _check_slice(metric: str, shape: tuple[int, ...], *, smallest: int) -> None:
    if len(shape) != 2 or min(shape) < smallest:
        raise DataError(f"{metric} needs one slice (y, x) of at least {smallest} × {smallest} pixels, got shape {shape}")


def _inscribed_circle(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The largest circle inside a slice: what most scanners reconstruct."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    return np.hypot(y[:, None], x) <= min(shape) / 2


def _counted(protocol: Protocol, reference_hu: NDArray, roi: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Pixels both in the roi and in the protocol's mask; None for all."""
    mask = protocol.mask_of(reference_hu)
    if mask is None or roi is None:
        return roi if mask is None else mask
    return mask & roi


def _difference(
    reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_] | None, protocol: Protocol | None
) -> NDArray[np.float64]:
    """Candidate − reference in HU where it counts; clipped as the protocol says, if there is one."""
    _check(reference_hu, candidate_hu, roi)
    if protocol is None:
        difference = np.asarray(candidate_hu, dtype=np.float64) - reference_hu
    else:
        difference = protocol.clip(candidate_hu)
        difference -= protocol.clip(reference_hu)
        roi = _counted(protocol, reference_hu, roi)
    return difference.ravel() if roi is None else difference[roi]


def _mean(values: NDArray) -> float:
    """Mean, NaN if there is nothing to average (NumPy would warn)."""
    return float(values.mean()) if values.size else float("nan")


def _mean_square(values: NDArray[np.float64]) -> float:
    return float(np.dot(values, values) / values.size) if values.size else float("nan")


# --- PSNR and errors in HU ---------------------------------------------------------------------------------------------------


def psnr(reference_hu: NDArray, candidate_hu: NDArray, *, protocol: Protocol, roi: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB under a protocol, in the roi (None: every pixel that the protocol counts).

    10·log10(data range² / MSE) after clipping both images to the protocol's interval. Infinite for equal images, NaN for
    an empty roi and for a constant reference that has no range of its own. Shape: (y, x) or any other, the same for all.
    """
    mse = _mean_square(_difference(reference_hu, candidate_hu, roi, protocol))
    if mse == 0:
        return float("inf")
    data_range = protocol.data_range_hu(reference_hu)
    return float(10 * np.log10(data_range**2 / mse)) if data_range > 0 else float("nan")


def rmse_hu(
    reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_] | None = None, *, protocol: Protocol | None = None
) -> float:
    """Root mean square error in HU in the roi (None: every pixel); clipped under a protocol, without one as it is."""
    return float(np.sqrt(_mean_square(_difference(reference_hu, candidate_hu, roi, protocol))))


def mae_hu(
    reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_] | None = None, *, protocol: Protocol | None = None
) -> float:
    """Mean absolute error in HU in the roi (None: every pixel); clipped under a protocol, without one as it is."""
    return _mean(np.abs(_difference(reference_hu, candidate_hu, roi, protocol)))


def hu_bias(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_] | None = None) -> float:
    """Mean of candidate − reference in HU: what a denoiser adds to or takes from CT numbers; NaN for an empty roi.

    Per tissue: in each roi of `regions.tissue_rois`.
    """
    return _mean(_difference(reference_hu, candidate_hu, roi, None))


# --- local means -------------------------------------------------------------------------------------------------------------


def _gaussian_weights(size: int, sigma: float) -> tuple[float, ...]:
    weights = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


@lru_cache(maxsize=64)
def _averaging(n: int, weights: tuple[float, ...], border: Literal["reflect", "zero", "valid"]) -> csr_array:
    """Local weighted means along one axis of n pixels as a matrix, (n or fewer, n): several times as fast as shifting windows."""
    reach = len(weights) // 2
    pixels = np.pad(np.arange(n), reach, mode="symmetric")
    rows, taps = np.indices((n, len(weights)))
    values = np.broadcast_to(np.array(weights), rows.shape).copy()
    if border == "zero":
        values[(rows + taps < reach) | (rows + taps >= n + reach)] = 0
    matrix = csr_array((values.ravel(), (rows.ravel(), pixels[rows + taps].ravel())), shape=(n, n))
    return matrix[reach : n - reach] if border == "valid" else matrix


def _averaged(image: NDArray[np.float64], rows: csr_array, columns: csr_array) -> NDArray[np.float64]:
    """Local means of an image (y, x): weights along y, then along x."""
    return (columns @ np.ascontiguousarray((rows @ image).T)).T


# --- SSIM --------------------------------------------------------------------------------------------------------------------

K1, K2 = 0.01, 0.03
"""Wang et al. (2004): constants of SSIM, in parts of the data range."""

SSIM_WEIGHTS = {
    "gaussian": _gaussian_weights(11, 1.5),
    "gaussian-zero-padded": _gaussian_weights(11, 1.5),
    "uniform": (1 / 7,) * 7,
}
"""Weights along each axis of the windows in use; their sources stand at `Protocol`."""


def ssim_map(reference_hu: NDArray, candidate_hu: NDArray, *, protocol: Protocol) -> tuple[float, NDArray[np.float64]]:
    """Mean structural similarity over the pixels that the protocol counts, and its map.

    The mean leaves out the border that windows overhang, unless the protocol says otherwise; the map has it, mirrored. NaN
    for a constant reference that has no range of its own. Shape: (y, x) → (y, x).

    Source: Wang et al. (2004), equation 13. The variances only enter as their sum, which saves a fifth of the work.
    """
    _check(reference_hu, candidate_hu, None)
    weights = SSIM_WEIGHTS[protocol.ssim]
    _check_slice("SSIM", reference_hu.shape, smallest=len(weights))
    data_range = protocol.data_range_hu(reference_hu)
    a, b = protocol.clip(reference_hu), protocol.clip(candidate_hu)
    if protocol.unit == "[0, 1]":
        a, b, data_range = (a - protocol.low_hu) / protocol.width_hu, (b - protocol.low_hu) / protocol.width_hu, 1.0
    if data_range == 0:
        return float("nan"), np.full(a.shape, np.nan)
    border: Literal["reflect", "zero"] = "zero" if protocol.ssim == "gaussian-zero-padded" else "reflect"
    rows, columns = (_averaging(n, weights, border) for n in a.shape)
    mean_a, mean_b, squares, product = (_averaged(moment, rows, columns) for moment in (a, b, a * a + b * b, a * b))
    n_pixels = len(weights) ** 2
    unbiased = n_pixels / (n_pixels - 1) if protocol.ssim == "uniform" else 1.0
    means_product, means_squares = mean_a * mean_b, mean_a**2 + mean_b**2
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * means_product + c1) / (means_squares + c1)
    structure = (2 * unbiased * (product - means_product) + c2) / (unbiased * (squares - means_squares) + c2)
    full = luminance * structure
    reach = 0 if border == "zero" else len(weights) // 2
    inner = np.s_[reach : a.shape[0] - reach, reach : a.shape[1] - reach]
    counted = protocol.mask_of(reference_hu)
    return _mean(full[inner] if counted is None else full[inner][counted[inner]]), full


def ssim(reference_hu: NDArray, candidate_hu: NDArray, *, protocol: Protocol, roi: NDArray[np.bool_] | None = None) -> float:
    """Structural similarity under a protocol: the mean of its map in the roi (None: as `ssim_map` has it)."""
    _check(reference_hu, candidate_hu, roi)
    mean, full = ssim_map(reference_hu, candidate_hu, protocol=protocol)
    return mean if roi is None else _mean(full[_counted(protocol, reference_hu, roi)])


# --- VIF ---------------------------------------------------------------------------------------------------------------------

VIF_SCALES = (17, 9, 5, 3)
"""Side of the Gaussian window in pixels at each scale; its σ is a fifth of it. Sheikh & Bovik's own vifp_mscale."""

VIF_NOISE_VARIANCE = 2.0
"""Variance of the visual noise, Sheikh & Bovik's 2 for grey levels 0–255; in HU² here, as ldct-benchmark has it."""

VIF_TINY = 1e-10
"""Variance that counts as none, as in the public implementations."""


def vif(reference_hu: NDArray, candidate_hu: NDArray, *, protocol: Protocol) -> float:
    """Visual information fidelity: which part of the reference's information is in the candidate; 1 for equal images.

    The pixel-domain form over four scales, on HU clipped to the protocol's interval. It exceeds 1 where the candidate has
    more contrast, and is 0 for a constant candidate. NaN for a constant reference, which holds no information, and for a
    protocol with a mask, for VIF is not defined in one. Where the protocol's `vif_source` is "candidate" the two images
    change places, as in ldct-benchmark.

    Shape: (y, x), at least 41 × 41.
    Source: Sheikh & Bovik (2006), "Image information and visual quality".
    """
    _check(reference_hu, candidate_hu, None)
    _check_slice("VIF", reference_hu.shape, smallest=41)
    if protocol.mask != "all":
        return float("nan")
    low = protocol.low_hu if protocol.vif_low_hu is None else protocol.vif_low_hu
    high = protocol.high_hu if protocol.vif_high_hu is None else protocol.vif_high_hu
    first, second = (np.clip(np.asarray(hu, dtype=np.float64), low, high) for hu in (reference_hu, candidate_hu))
    source, distorted = (first, second) if protocol.vif_source == "reference" else (second, first)
    middle = source.mean()  # VIF knows no offset; without it the variances lose fewer digits
    source, distorted = source - middle, distorted - middle
    kept = there = 0.0
    for side in VIF_SCALES:
        rows, columns = (_averaging(n, _gaussian_weights(side, side / 5), "valid") for n in source.shape)
        if side != VIF_SCALES[0]:
            source, distorted = (_averaged(image, rows[::2], columns[::2]) for image in (source, distorted))
            rows, columns = (_averaging(n, _gaussian_weights(side, side / 5), "valid") for n in source.shape)
        kept_here, there_here = _information(source, distorted, rows, columns)
        kept, there = kept + kept_here, there + there_here
    return kept / there if there > 0 else float("nan")


def _information(
    source: NDArray[np.float64], distorted: NDArray[np.float64], rows: csr_array, columns: csr_array
) -> tuple[float, float]:
    """Information of one scale that the distorted image keeps and that the source holds, in nats up to a common factor.

    The distorted image is, place by place, gain · source + noise; both are seen through visual noise.
    """
    moments = (source, distorted, source * source, distorted * distorted, source * distorted)
    mean_s, mean_d, square_s, square_d, product = (_averaged(moment, rows, columns) for moment in moments)
    variance_s = np.maximum(square_s - mean_s * mean_s, 0)
    variance_d = np.maximum(square_d - mean_d * mean_d, 0)
    covariance = product - mean_s * mean_d
    related = (variance_s >= VIF_TINY) & (variance_d >= VIF_TINY) & (covariance > 0)
    variance_s[variance_s < VIF_TINY] = 0
    gain = np.where(related, covariance / (variance_s + VIF_TINY), 0)
    noise = np.maximum(variance_d - gain * covariance, VIF_TINY)
    kept = np.log1p(gain * gain * variance_s / (noise + VIF_NOISE_VARIANCE)).sum()
    return float(kept), float(np.log1p(variance_s / VIF_NOISE_VARIANCE).sum())
