"""The energy of a frequency band in a region, kept or lost, and how much of it is true.

Energy is never reported without coherence: leaving noise in raises the first and lowers the second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.frequency import DCT_BLOCK, Band, block_dct, to_blocks

GRID_OFFSETS = ((0, 0), (4, 4), (0, 4), (4, 0))
"""Block grids (row, column) that every band metric is pooled over: one 8 × 8 grid alone is off by up to 16 %."""

MIN_BLOCK_COVERAGE = 0.5
"""Fraction of a DCT block that must lie in the roi for the block to count."""


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
    reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_], *, band: Band, pixel_mm: float
) -> float:
    """E(candidate) / E(reference) over the band, energies (squared amplitudes) pooled over four block grids.

    NaN if the roi holds no block or the reference no energy. Never read it alone: noise left in
    raises it, see `band_coherence`.
    """
    return energy_ratio(
        band_coefficients(reference_hu, roi, band=band, pixel_mm=pixel_mm),
        band_coefficients(candidate_hu, roi, band=band, pixel_mm=pixel_mm),
    )


def band_coherence(reference_hu: NDArray, candidate_hu: NDArray, roi: NDArray[np.bool_], *, band: Band, pixel_mm: float) -> float:
    """⟨D(candidate), D(reference)⟩ / (‖D(candidate)‖ ‖D(reference)‖) over the band: 1 is the same structure, 0 unrelated.

    With a noise-free reference it tells true texture from kept or invented noise. NaN if the roi holds no
    block or either image no energy.
    """
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
