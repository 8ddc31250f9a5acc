"""The band equaliser: a gain per frequency ring on a network's output, the free way to full high-frequency energy.

A network that is trained with the squared error smooths what it cannot predict. Multiplying each ring by a gain that was found
on validation slices brings the energy back, at the price of what the network had won in PSNR. It adds nothing that is true, so a
network that was trained for energy must do better than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.frequency import DCT_BLOCK, block_dct, dct_matrix, nyquist_fraction, to_blocks

RINGS = DCT_BLOCK
"""Rings of a block's coefficients, each Nyquist / 8 wide; the last holds all from Nyquist up. The mean belongs to none."""

SMALLEST_GAIN, LARGEST_GAIN = 0.5, 4.0

GRID_OFFSETS = ((0, 0), (4, 4), (0, 4), (4, 0))
"""Block grids (row, column) that energies are pooled over."""

ROUNDS = 4
"""Rings of different block grids overlap, so that one round leaves some percent of the amplitude to the next."""


@dataclass(frozen=True)
class BandEqualiser:
    """A gain on each ring of the block DCT, averaged over all 64 block grids, so that no grid shows.

    Attributes:
        gains: of amplitudes, one per ring, lowest frequency first.
    """

    gains: tuple[float, ...]

    def apply(self, image: NDArray[np.floating], *, strength: float) -> NDArray[np.float64]:
        """The image with `strength` times the change that the gains make: 0 gives it back, 1 the full gains. Shape: (y, x)."""
        image = np.asarray(image, dtype=np.float64)
        # Like the DCT itself, the edge sees its own mirror image.
        return image + strength * (ndimage.convolve(image, self.kernel(), mode="reflect") - image)

    def kernel(self) -> NDArray[np.float64]:
        """Block DCT, gains and inverse, averaged over all grids, are this convolution. Shape: (15, 15), sum 1.

        On one grid, pixels p and q of a block are joined by Σ gain(u, v) B[u, p] B[v, q]; which places of a block they take
        goes through all grids, and that leaves the autocorrelation of each basis vector.
        """
        correlation = np.stack([np.correlate(vector, vector, mode="full") for vector in dct_matrix(DCT_BLOCK)])
        gain = np.append(self.gains, 1.0)[_ring_of_coefficient()]
        return correlation.T @ gain @ correlation / DCT_BLOCK**2


def calibrate_equaliser(images: Sequence[tuple[NDArray, NDArray, NDArray[np.bool_]]]) -> BandEqualiser:
    """The equaliser that gives outputs the energy of their references, ring by ring: gain² = E(reference) / E(output).

    Energies are pooled over all slices, in blocks that the body covers by half. Gains are limited to [0.5, 4].

    Args:
        images: reference, output and body of each validation slice; the first two in HU.

    Shape: (y, x) each.
    """
    wanted = sum((ring_energies(reference, body) for reference, _, body in images), start=np.zeros(RINGS))
    gains = np.ones(RINGS)
    for _ in range(ROUNDS):
        equaliser = BandEqualiser(tuple(gains.tolist()))
        found = sum(
            (ring_energies(equaliser.apply(output, strength=1.0), body) for _, output, body in images), start=np.zeros(RINGS)
        )
        gains = np.clip(gains * np.sqrt(wanted / np.maximum(found, 1e-12)), SMALLEST_GAIN, LARGEST_GAIN)
    return BandEqualiser(tuple(gains.tolist()))


def ring_energies(image: NDArray, body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Squared block-DCT coefficients of each ring, summed over the blocks of four grids that the body covers by half.

    Shape: image, body (y, x) → (ring,).
    """
    ring = _ring_of_coefficient()
    total = np.zeros(RINGS + 1)
    for offset in GRID_OFFSETS:
        counts = to_blocks(body, offset=offset).mean(axis=(-2, -1)) >= 0.5
        energy = (block_dct(np.asarray(image, dtype=np.float64), offset=offset)[counts] ** 2).sum(axis=0)
        total += np.bincount(ring.ravel(), weights=energy.ravel(), minlength=RINGS + 1)
    return total[:RINGS]


def _ring_of_coefficient() -> NDArray[np.intp]:
    """Number of the ring that each coefficient lies in; RINGS for the mean. Shape: (u, v)."""
    ring = np.minimum(np.floor(nyquist_fraction(DCT_BLOCK) * RINGS).astype(np.intp) - 1, RINGS - 1)
    ring[0, 0] = RINGS
    return ring
