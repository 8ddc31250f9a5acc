"""Texture: where it is, how much of its high-band energy is kept, how much of that is true, and how it would look.

Every region is found on the reference alone, so that no method can move the ground on which it is judged. Energy is never
reported without coherence: leaving noise in raises the first and lowers the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import local_binary_pattern

from finegrain.errors import DataError
from finegrain.frequency import DCT_BLOCK, Band, block_dct, to_blocks

GRID_OFFSETS = ((0, 0), (4, 4), (0, 4), (4, 0))
"""Block grids (row, column) that every band metric is pooled over: one 8 × 8 grid alone is off by up to 16 %."""

MIN_BLOCK_COVERAGE = 0.5
"""Fraction of a DCT block that must lie in the roi for the block to count."""

# Where texture is: all ours, set by eye on chest and abdomen scans of two makers and three kernels.
BODY_HU = -400.0
OPENING_PIXELS = 5
AIR_HU_LIMIT = -960.0
EDGE_SIGMA_MM = 2.5
EDGE_HU_PER_MM = 35.0
EDGE_MARGIN_MM = 4.0
SOFT_HU = 150.0
NOISE_QUANTILE = 0.25
TEXTURE_FACTOR = 1.6
UNIFORM_FACTOR = 1.3
SMALLEST_ROI_PIXELS = 64

# How texture looks: ours too.
TREND_SIGMA_MM = 4.0
GLCM_LOW_HU, GLCM_HIGH_HU, GLCM_BIN_HU = -400.0, 400.0, 20.0
LOCAL_SD_PIXELS = 7
LBP_POINTS = 8


@dataclass(frozen=True)
class TextureROIs:
    """Where a texture metric looks: masks of shape (y, x); the first two are disjoint and lie inside `body`."""

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
    y, x = np.ogrid[-OPENING_PIXELS : OPENING_PIXELS + 1, -OPENING_PIXELS : OPENING_PIXELS + 1]
    pad = 2 * OPENING_PIXELS  # a body that is cut by the field of view must not be eroded along the cut
    core = ndimage.binary_opening(np.pad(solid, pad, mode="edge"), y**2 + x**2 <= OPENING_PIXELS**2)
    labels, n_components = ndimage.label(core[pad:-pad, pad:-pad])
    if n_components == 0:
        return np.zeros(solid.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(np.isin(labels, np.flatnonzero(sizes >= sizes.max() / 3)))


def texture_rois(reference_hu: NDArray, *, pixel_mm: float, band: Band) -> TextureROIs:
    """Where the reference holds fine texture and where it is uniform, inside the body and away from strong edges.

    The noise expected at each place is a smooth field, the lower quartile of the band energy in soft tissue and fat: noise
    of CT varies smoothly across a slice, whatever the tissue, and texture only adds to it. Fine texture is where the
    local band energy exceeds that field 1.6-fold, uniform where it stays below 1.3-fold; between them is neither. Both
    are empty where the slice holds too little soft tissue to know its noise.

    Args:
        reference_hu: the normal-dose slice in HU; nothing else may be given, see the module's first lines.
        pixel_mm: pixel size in mm.
        band: the frequencies in which texture is sought.

    Shape: reference_hu (y, x) → masks (y, x).
    """
    hu = np.maximum(np.asarray(reference_hu, dtype=np.float64), -1024.0)  # padding of −2048 is air, not an edge
    body = body_mask(hu)
    smoothed = ndimage.gaussian_filter(hu, EDGE_SIGMA_MM / pixel_mm)
    calm = body & (smoothed > AIR_HU_LIMIT) & ~_strong_edges(hu, pixel_mm=pixel_mm)
    soft = calm & (np.abs(smoothed) < SOFT_HU)
    if soft.sum() < 10 * SMALLEST_ROI_PIXELS:
        nowhere = np.zeros_like(body)
        return TextureROIs(fine_texture=nowhere, uniform=nowhere.copy(), body=body)
    energy = ndimage.uniform_filter(local_band_energy(hu, pixel_mm=pixel_mm, band=band), DCT_BLOCK)
    excess = energy / _expected_noise_energy(energy, soft)
    return TextureROIs(
        fine_texture=_without_specks(calm & (excess > TEXTURE_FACTOR)),
        uniform=_without_specks(calm & (excess < UNIFORM_FACTOR)),
        body=body,
    )


def _strong_edges(hu: NDArray, *, pixel_mm: float) -> NDArray[np.bool_]:
    """Organ borders and what their DCT blocks reach; smoothing spares vessels and trabeculae, which are thinner."""
    gradient = ndimage.gaussian_gradient_magnitude(hu, EDGE_SIGMA_MM / pixel_mm) / pixel_mm
    strong = gradient > EDGE_HU_PER_MM
    if not strong.any():
        return strong
    return ndimage.distance_transform_edt(~strong) * pixel_mm <= EDGE_MARGIN_MM


def local_band_energy(hu: NDArray, *, pixel_mm: float, band: Band) -> NDArray[np.float64]:
    """Energy of the band per pixel, in HU², in the blocks over each pixel, averaged over the grids. Shape: (y, x) → (y, x)."""
    in_band = band.mask(DCT_BLOCK, pixel_mm=pixel_mm)
    total, count = np.zeros(hu.shape), np.zeros(hu.shape)
    for row, column in GRID_OFFSETS:
        energy = (block_dct(hu, offset=(row, column))[..., in_band] ** 2).sum(axis=-1) / DCT_BLOCK**2
        spread = np.kron(energy, np.ones((DCT_BLOCK, DCT_BLOCK)))
        place = np.s_[row : row + spread.shape[0], column : column + spread.shape[1]]
        total[place] += spread
        count[place] += 1
    return total / np.maximum(count, 1)


def _expected_noise_energy(energy: NDArray, soft: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Low quantile of the energy in soft tissue as a smooth field: quantile regression of its logarithm on a quadratic.

    Iteratively reweighted least squares on every seventh pixel: neighbours share their blocks and say nothing new.
    """
    log_energy = np.log(energy + 1e-6)  # a noise-free phantom has none
    y = np.linspace(-1, 1, energy.shape[0])[:, None] * np.ones((1, energy.shape[1]))
    x = np.linspace(-1, 1, energy.shape[1])[None, :] * np.ones((energy.shape[0], 1))
    terms = np.stack([x**i * y**j for i in range(3) for j in range(3 - i)], axis=-1)
    some_terms, some_energy = terms[soft][::7], log_energy[soft][::7]
    weight = np.ones(len(some_energy))
    for _ in range(30):
        root = np.sqrt(weight)
        coefficients = np.linalg.lstsq(some_terms * root[:, None], some_energy * root, rcond=None)[0]
        excess = some_energy - some_terms @ coefficients
        weight = np.where(excess > 0, NOISE_QUANTILE, 1 - NOISE_QUANTILE) / np.maximum(np.abs(excess), 0.02)
    return np.exp(terms @ coefficients)


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Chance excursions of noise are smaller than a DCT block; they are not texture."""
    labels, _ = ndimage.label(mask)
    return mask & (np.bincount(labels.ravel())[labels] >= SMALLEST_ROI_PIXELS)


def band_coefficients(hu: NDArray, roi: NDArray[np.bool_], *, band: Band, pixel_mm: float) -> NDArray[np.float64]:
    """Block-DCT coefficients of the band in every block that the roi covers by half, over all grids.

    Shape: hu, roi (y, x) → (block, coefficient); no blocks if the roi covers none.
    """
    if hu.shape != roi.shape:
        raise DataError(f"the roi of shape {roi.shape} does not fit the image of {hu.shape}")
    in_band = band.mask(DCT_BLOCK, pixel_mm=pixel_mm)
    found = []
    for offset in GRID_OFFSETS:
        counts = to_blocks(roi, offset=offset).mean(axis=(-2, -1)) >= MIN_BLOCK_COVERAGE
        found.append(block_dct(np.asarray(hu, dtype=np.float64), offset=offset)[counts][:, in_band])
    return np.concatenate(found)


def band_energy_ratio(
    reference_hu: NDArray, candidate_hu: NDArray, *, band: Band, pixel_mm: float, roi: NDArray[np.bool_] | None = None
) -> float:
    """E(candidate) / E(reference) over the band, energies (squared amplitudes) pooled over four block grids.

    `roi` None means the body. NaN if the roi holds no block or the reference no energy. Never read it alone: noise left in
    raises it, see `band_coherence`.
    """
    roi = body_mask(reference_hu) if roi is None else roi
    return energy_ratio(
        band_coefficients(reference_hu, roi, band=band, pixel_mm=pixel_mm),
        band_coefficients(candidate_hu, roi, band=band, pixel_mm=pixel_mm),
    )


def band_coherence(
    reference_hu: NDArray, candidate_hu: NDArray, *, band: Band, pixel_mm: float, roi: NDArray[np.bool_] | None = None
) -> float:
    """⟨D(candidate), D(reference)⟩ / (‖D(candidate)‖ ‖D(reference)‖) over the band: 1 is the same structure, 0 unrelated.

    With a noise-free reference it tells true texture from kept or invented noise. `roi` None means the body. NaN if the
    roi holds no block or either image no energy.
    """
    roi = body_mask(reference_hu) if roi is None else roi
    return coherence(
        band_coefficients(reference_hu, roi, band=band, pixel_mm=pixel_mm),
        band_coefficients(candidate_hu, roi, band=band, pixel_mm=pixel_mm),
    )


def energy_ratio(reference: NDArray, candidate: NDArray) -> float:
    """Energy of the candidate's coefficients over that of the reference's; NaN without reference energy."""
    energy = float((reference**2).sum())
    return float((candidate**2).sum()) / energy if energy > 0 else float("nan")


def coherence(reference: NDArray, candidate: NDArray) -> float:
    """Normalised inner product of two sets of coefficients; NaN if either is zero."""
    norm = float(np.linalg.norm(reference) * np.linalg.norm(candidate))
    return float((reference * candidate).sum()) / norm if norm > 0 else float("nan")


def consistency(ratio: float) -> float:
    """min(r, 1/r): 1 where energy is kept, less where it is lost or added alike.

    >>> consistency(0.5), consistency(2.0)
    (0.5, 0.5)
    """
    if not ratio > 0:
        return 0.0 if ratio == 0 else float("nan")
    return min(ratio, 1 / ratio)


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
    coefficients = band_coefficients(detail, roi, band=Band(low=0.0, high=2.0), pixel_mm=pixel_mm)
    energy = (coefficients**2).sum(axis=0)
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
