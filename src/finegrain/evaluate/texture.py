"""How texture would look to a reader: co-occurrence, local SD, local patterns and the shape of the spectrum, within a region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import local_binary_pattern

from finegrain.evaluate.bands import band_sums
from finegrain.frequency import DCT_BLOCK

# All ours.
TREND_SIGMA_MM = 4.0
GLCM_LOW_HU, GLCM_HIGH_HU, GLCM_BIN_HU = -400.0, 400.0, 20.0
LOCAL_SD_PIXELS = 7
LBP_POINTS = 8


def glcm(hu: NDArray, roi: NDArray[np.bool_], *, low_hu: float, high_hu: float, bin_hu: float) -> NDArray[np.float64]:
    """Grey-level co-occurrence of neighbours that both lie in the roi: 0°, 45°, 90° and 135° at distance 1, symmetric.

    Values outside [low_hu, high_hu] fall into the outer bins. Zero throughout if the roi holds no pair.

    Shape: hu, roi (y, x) → probabilities (direction, level, level), each direction summing to 1.
    Source: Haralick, Shanmugam and Dinstein (1973).
    """
    n_levels = round((high_hu - low_hu) / bin_hu)
    level = np.clip(np.floor((hu - low_hu) / bin_hu), 0, n_levels - 1).astype(np.int64)
    pairs = (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[1:, :-1], np.s_[:-1, 1:]),
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
    )
    matrices = np.zeros((len(pairs), n_levels, n_levels))
    for matrix, (here, there) in zip(matrices, pairs, strict=True):
        both = roi[here] & roi[there]
        index = level[here][both] * n_levels + level[there][both]
        counts = np.bincount(index, minlength=n_levels**2).reshape(n_levels, n_levels)
        matrix += (counts + counts.T) / max(2 * len(index), 1)
    return matrices


def glcm_features(matrices: NDArray) -> dict[str, float]:
    """Contrast (bins²), correlation, homogeneity and entropy (bits), each the mean over the directions.

    Correlation is 1 where all values are alike, as in scikit-image. Shape: matrices (direction, level, level).
    """
    i, j = np.indices(matrices.shape[-2:])
    mean = (matrices * i).sum(axis=(-2, -1))  # symmetric: rows and columns share mean and variance
    variance = (matrices * i**2).sum(axis=(-2, -1)) - mean**2
    covariance = (matrices * i * j).sum(axis=(-2, -1)) - mean**2
    varies = variance > 1e-12
    correlation = np.where(varies, covariance / np.where(varies, variance, 1), 1.0)
    entropy = -(matrices * np.log2(np.where(matrices > 0, matrices, 1))).sum(axis=(-2, -1))
    return {
        "contrast": float((matrices * (i - j) ** 2).sum(axis=(-2, -1)).mean()),
        "correlation": float(correlation.mean()),
        "homogeneity": float((matrices / (1 + (i - j) ** 2)).sum(axis=(-2, -1)).mean()),
        "entropy": float(entropy.mean()),
    }


@dataclass(frozen=True)
class TextureDescription:
    """What `texture_index` compares of one image in one roi.

    Attributes:
        glcm: the features of `glcm_features`, of detrended HU in bins of 20 HU over [−400, 400].
        local_sd: standard deviation in HU of detrended 7 × 7 neighbourhoods around each pixel of the roi.
        lbp: histogram of uniform local binary patterns (8 neighbours at distance 1), sums to 1.
        spectrum: share of each block-DCT coefficient (the constant left out) in the energy of detrended HU, sums to 1.
    """

    glcm: dict[str, float]
    local_sd: NDArray[np.float64]
    lbp: NDArray[np.float64]
    spectrum: NDArray[np.float64]


def describe_texture(hu: NDArray, roi: NDArray[np.bool_], *, pixel_mm: float) -> TextureDescription:
    """GLCM features, local SD, local binary patterns and noise-power shape of an image within a roi.

    HU are detrended first (minus their Gaussian mean, σ = 4 mm): otherwise the contrast between lung and bone would drown
    the texture within either. Shape: hu, roi (y, x).
    """
    hu = np.asarray(hu, dtype=np.float64)
    detail = hu - ndimage.gaussian_filter(hu, TREND_SIGMA_MM / pixel_mm)
    mean = ndimage.uniform_filter(detail, LOCAL_SD_PIXELS)
    local_sd = np.sqrt(np.maximum(ndimage.uniform_filter(detail**2, LOCAL_SD_PIXELS) - mean**2, 0))
    # In steps of 0.1 HU: rounding to whole HU would turn a smooth output's gradients into flat patterns.
    pattern = local_binary_pattern(np.round(detail * 10).astype(np.int32), LBP_POINTS, 1, method="uniform")
    histogram = np.bincount(pattern[roi].astype(np.int64), minlength=LBP_POINTS + 2).astype(np.float64)
    energy = band_sums([detail], [roi], n_references=0).energy[0, 0].ravel()[1:]
    return TextureDescription(
        glcm=glcm_features(glcm(detail, roi, low_hu=GLCM_LOW_HU, high_hu=GLCM_HIGH_HU, bin_hu=GLCM_BIN_HU)),
        local_sd=local_sd[roi],
        lbp=histogram / max(histogram.sum(), 1),
        spectrum=energy / energy.sum() if energy.sum() > 0 else energy,
    )


TEXTURE_PARTS = ("contrast", "correlation", "homogeneity", "entropy", "local_sd", "lbp", "nps_shape")


def texture_index(reference: TextureDescription, candidate: TextureDescription) -> dict[str, float]:
    """How far a texture is from the reference's: seven relative errors and `index`, their mean; 0 is alike.

    GLCM features: |candidate − reference| / |reference| (correlation: with at least 0.1 below, for sharp kernels bring it
    near 0). Local SD: mean absolute error of the map over its mean. LBP and NPS shape: half the L1 distance of the two
    histograms, in [0, 1]. The improvement of one method on another is 1 − index / index of the other. All NaN if the roi
    holds fewer pixels than one DCT block.
    """
    if reference.local_sd.size < DCT_BLOCK**2:
        return dict.fromkeys((*TEXTURE_PARTS, "index"), float("nan"))
    error = {
        name: abs(candidate.glcm[name] - value) / max(abs(value), 0.1 if name == "correlation" else 1e-12)
        for name, value in reference.glcm.items()
    }
    error["local_sd"] = float(np.abs(candidate.local_sd - reference.local_sd).mean() / max(reference.local_sd.mean(), 1e-12))
    error["lbp"] = float(np.abs(candidate.lbp - reference.lbp).sum() / 2)
    error["nps_shape"] = float(np.abs(candidate.spectrum - reference.spectrum).sum() / 2)
    return {**error, "index": float(np.mean(list(error.values())))}
