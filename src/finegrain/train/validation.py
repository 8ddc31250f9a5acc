"""How good a network is while it is trained: error, PSNR and texture on the same slices each time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finegrain.errors import DataError
from finegrain.frequency import Band, block_dct
from finegrain.hu import HURange
from finegrain.networks.skeleton import STRIDE, ImageNetwork
from finegrain.pairs.manifest import Pair
from finegrain.spread import spread

MOST_SLICES = 16
"""Validation slices; a default, taken from nowhere."""
SIDE = 256
"""Side of the middle of a slice that is measured, in pixels; a default, taken from nowhere."""
HIGHEST_HU = 1000.0
"""What exceeds it counts as it in the RMSE, or metal would decide which weights are best."""
PSNR_NAME, PSNR_LOW_HU, PSNR_HIGH_HU = "psnr_db[abdomen-40/400]", -160.0, 240.0
"""The protocol of PSNR, that of the evaluation with this name: both images clipped to the interval, whose width is the peak."""
BAND = Band(0.4, 1.5)
"""Where texture is measured: above 0.4 Nyquist, four of the 64 of the evaluation: enough to follow a training by."""
GRID_OFFSETS = ((0, 0), (4, 4), (0, 4), (4, 0))
"""Block grids over which energies are pooled, four of the 64 of the evaluation: enough to follow a training by."""


def validation_set(pairs: list[Pair], folder: Path, hu_range: HURange) -> list[tuple[Tensor, Tensor]]:
    """The same central crops at every validation, at most `MOST_SLICES`, spread over the pairs: input and target, unit range."""
    if not pairs:
        raise DataError("no validation pairs: the manifest has none in its split 'validation'")
    crops = []
    for pair in spread(pairs, MOST_SLICES):
        images = pair.images(folder)
        rows, columns = (min(SIDE, length) // STRIDE * STRIDE for length in images.shape[1:])
        top, left = (images.shape[1] - rows) // 2, (images.shape[2] - columns) // 2
        unit = hu_range.to_unit(images[:2, top : top + rows, left : left + columns].astype(np.float32))
        crops.append((torch.from_numpy(unit[None, 0:1].copy()), torch.from_numpy(unit[None, 1:2].copy())))
    return crops


@torch.no_grad()
def validate(network: ImageNetwork, validation: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """What `compared` tells of a network's output and the normal dose, over the whole of the crops."""
    network.eval()
    device = next(network.parameters()).device
    span, low = network.hu_range.span, network.hu_range.low

    def in_hu(unit: Tensor) -> np.ndarray:
        return unit[0, 0].numpy().astype(np.float64) * span + low

    return compared((in_hu(network(inputs.to(device)).cpu()), in_hu(targets)) for inputs, targets in validation)


def compared(images: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Measures of outputs against the normal dose, both in HU.

    `rmse_hu`: root mean square error, values above 1000 HU taken as 1000. `psnr_db[…]`: mean over the slices of the PSNR by that
    protocol. `hf_ratio`: energy above 0.4 Nyquist over that of the normal dose, whose noise counts; `hf_coherence`: how much of it
    is the same, from 0 to 1. Both are pooled over the slices; noise left in raises the first and lowers the second.

    Shape: (y, x) each.
    """
    squared, psnr, energies = [], [], np.zeros(3)
    for ours, theirs in images:
        squared.append(_squared_error(ours, theirs, high_hu=HIGHEST_HU))
        error = _squared_error(ours, theirs, low_hu=PSNR_LOW_HU, high_hu=PSNR_HIGH_HU)
        psnr.append(10 * math.log10((PSNR_HIGH_HU - PSNR_LOW_HU) ** 2 / error) if error else math.inf)
        energies += _band_energies(ours, theirs)
    own, reference, shared = energies
    return {
        "rmse_hu": float(np.sqrt(np.mean(squared))),
        PSNR_NAME: float(np.mean(psnr)),
        "hf_ratio": float(own / reference) if reference else math.nan,
        "hf_coherence": float(shared / math.sqrt(own * reference)) if own * reference else math.nan,
    }


def _squared_error(ours: np.ndarray, theirs: np.ndarray, *, low_hu: float = -math.inf, high_hu: float) -> float:
    return float(((np.clip(ours, low_hu, high_hu) - np.clip(theirs, low_hu, high_hu)) ** 2).mean())


def _band_energies(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Energy of ours, of theirs, and their inner product over the band and all grids."""
    total = np.zeros(3)
    for offset in GRID_OFFSETS:
        a, b = (block_dct(image, offset=offset)[..., BAND.mask()] for image in (ours, theirs))
        total += (a * a).sum(), (b * b).sum(), (a * b).sum()
    return total
