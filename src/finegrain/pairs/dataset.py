"""Pairs → patches as tensors: random crops inside the body, flipped and turned, the same for one seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finegrain.errors import DataError
from finegrain.hu import HURange
from finegrain.pairs.manifest import Pair

BODY_HU = -500.0
"""A pixel above this is body; lungs count through the chest wall and vessels around them."""
LEAST_BODY = 0.25
"""Share of a patch that must not be air, lung aside."""


class PatchSampler:
    """An endless stream of training batches.

    Each patch draws a source, then one of its patients, then a slice: long scans do not drown short ones, and many virtual
    patients do not drown the few real ones.

    Args:
        pairs: the training pairs.
        folder: where they are stored.
        patch: side in pixels.
        batch: patches a batch.
        hu_range: what [0, 1] means.
        seed: same seed, same stream.
    """

    def __init__(self, pairs: list[Pair], folder: Path, *, patch: int, batch: int, hu_range: HURange, seed: int) -> None:
        if not pairs:
            raise DataError("no training pairs: the manifest has none in its split 'train'")
        self.folder, self.patch, self.batch, self.hu_range, self.seed = folder, patch, batch, hu_range, seed
        by_source: dict[int, dict[str, list[NDArray[np.int16]]]] = {}
        for pair in pairs:
            images = pair.images(folder)
            if min(images.shape[1:]) < patch:
                raise DataError(f"pair {pair.key} has {images.shape[1:]} pixels, smaller than a patch of {patch}")
            by_source.setdefault(pair.source, {}).setdefault(pair.patient, []).append(images)
        self._sources = [list(patients.values()) for patients in by_source.values()]

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: input and target in unit range, shape (b, 1, patch, patch). Any step can be asked for."""
        generator = np.random.default_rng([self.seed, step])
        patches = np.stack([self._patch(generator) for _ in range(self.batch)])
        unit = self.hu_range.to_unit(patches.astype(np.float32))
        return torch.from_numpy(unit[:, 0:1].copy()), torch.from_numpy(unit[:, 1:2].copy())

    def _patch(self, generator: np.random.Generator) -> NDArray[np.int16]:
        patients = self._sources[generator.integers(len(self._sources))]
        slices = patients[generator.integers(len(patients))]
        images = slices[generator.integers(len(slices))]
        _, rows, columns = images.shape
        for _attempt in range(16):
            y = generator.integers(rows - self.patch + 1)
            x = generator.integers(columns - self.patch + 1)
            cut = images[:2, y : y + self.patch, x : x + self.patch]
            if (cut[1, ::4, ::4] > BODY_HU).mean() >= LEAST_BODY:
                break
        if generator.random() < 0.5:
            cut = cut[:, :, ::-1]
        return np.rot90(cut, k=int(generator.integers(4)), axes=(1, 2))
