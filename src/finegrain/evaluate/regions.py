"""Where a measure looks: the body, its tissues, its fine texture and its uniform parts.

Every region is found on the reference alone, so that no method can move the ground on which it is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.evaluate.bands import local_band_energy
from finegrain.frequency import DCT_BLOCK, Band

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


TISSUE_HU = {"lung": (-950.0, -600.0), "fat": (-140.0, -60.0), "soft": (0.0, 130.0), "bone": (200.0, 3071.0)}
"""HU interval of each tissue, [low, high]; ours, after common textbook values. `soft` takes in enhanced organs."""

TISSUE_SIGMA_PIXELS = 1.5
TISSUE_EROSION_PIXELS = 2


def tissue_rois(reference_hu: NDArray) -> dict[str, NDArray[np.bool_]]:
    """Lung, fat, soft tissue and bone of a slice, found on the smoothed reference inside the body and eroded.

    Smoothing keeps noise from sorting pixels by their own noise, which would bias every tissue's mean; erosion takes off
    the borders, where the partial volume of lung and muscle looks like fat. A roi may be empty.

    Shape: (y, x) → {tissue: (y, x)}.
    """
    body = body_mask(reference_hu)
    smoothed = ndimage.gaussian_filter(np.asarray(reference_hu, dtype=np.float64), TISSUE_SIGMA_PIXELS)
    return {
        tissue: ndimage.binary_erosion(body & (smoothed >= low) & (smoothed <= high), iterations=TISSUE_EROSION_PIXELS)
        for tissue, (low, high) in TISSUE_HU.items()
    }
