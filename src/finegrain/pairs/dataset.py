"""Pairs → patches as tensors: evenly over body regions, patients, kernels and doses, inside the body, the same for one seed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finegrain.errors import ConfigError, DataError
from finegrain.hu import HURange
from finegrain.pairs.balance import balanced_weights
from finegrain.pairs.manifest import Pair, balance_factors, open_shard

BODY_HU = -950.0
"""A cell whose mean is above this is body; aerated lung lies at −900 to −700 HU, air around the patient near −1000."""
CELL = 8
"""Pixels a side of these cells: enough of them that noise does not lift air."""
LEAST_BODY = 0.25
"""Share of a patch that must be body; after sixteen draws in vain the last one is taken."""
MAPPED_SHARDS = 256
"""Shards that are mapped at a time: each takes a file descriptor, of which a process often has 1024."""


class PatchSampler:
    """An endless stream of training batches; any batch can be asked for, so that workers and restarts change nothing.

    Pairs are drawn with the weights of `balanced_weights`, by systematic sampling: within a batch, each dose, region and kernel
    gets its share to within one patch. As a map-style dataset (`sampler[step]` is a batch) it goes into a torch `DataLoader` with
    `batch_size=None`.

    Args:
        pairs: the training pairs.
        folder: the store that holds them.
        patch: side in pixels.
        batch: patches a batch.
        hu_range: what [0, 1] means.
        seed: same seed, same stream.
        doses: lowest and highest dose fraction to be mixed from pairs with inserted noise, drawn log-uniformly for each patch,
            never below that of the pair; None takes pairs as they are.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        folder: Path,
        *,
        patch: int,
        batch: int,
        hu_range: HURange,
        seed: int,
        doses: tuple[float, float] | None = None,
    ) -> None:
        if not pairs:
            raise DataError("no training pairs: the manifest has none in its split 'train'")
        if doses is not None and not 0 < doses[0] <= doses[1] < 1:
            raise ConfigError(f"doses must be a rising pair in (0, 1), got {doses}")
        self.folder, self.patch, self.batch, self.hu_range, self.seed, self.doses = folder, patch, batch, hu_range, seed, doses
        # Neighbours in this order are alike, which is what makes systematic sampling even.
        self._pairs = sorted(pairs, key=lambda pair: (pair.dose_fraction or 0, pair.region, pair.kernel, pair.patient, pair.key))
        self._cumulative = np.cumsum(balanced_weights(balance_factors(self._pairs)))
        self._mapped: OrderedDict[str, NDArray[np.int16]] = OrderedDict()
        for pair in {(pair.shard, pair.rows, pair.columns): pair for pair in self._pairs}.values():
            shape = (pair.rows, pair.columns) if pair.rows and pair.columns else pair.images(folder).shape[1:]
            if min(shape) < patch:
                raise DataError(f"pair {pair.key} has {shape} pixels, smaller than a patch of {patch}")

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped: a worker maps for itself what it reads."""
        return self.__dict__ | {"_mapped": OrderedDict()}

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.batch_at(step)

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: input and target in unit range, shape (b, 1, patch, patch). Any step can be asked for."""
        generator = np.random.default_rng([self.seed, step])
        drawn = self.pairs_at(step, generator)
        patches = np.stack([self._patch(pair, generator) for pair in drawn])
        unit = self.hu_range.to_unit(patches)
        return torch.from_numpy(unit[:, 0:1].copy()), torch.from_numpy(unit[:, 1:2].copy())

    def pairs_at(self, step: int, generator: np.random.Generator | None = None) -> list[Pair]:
        """The pairs that the patches of a step are cut from."""
        generator = generator or np.random.default_rng([self.seed, step])
        places = (generator.random() + np.arange(self.batch)) / self.batch * self._cumulative[-1]
        chosen = np.minimum(np.searchsorted(self._cumulative, places, side="right"), len(self._pairs) - 1)
        return [self._pairs[k] for k in chosen]

    def _patch(self, pair: Pair, generator: np.random.Generator) -> NDArray[np.float32]:
        """Input and target, cropped, flipped and turned. Shape: (2, patch, patch), HU."""
        images = self._images(pair)
        _, rows, columns = images.shape
        for _attempt in range(16):
            y = generator.integers(rows - self.patch + 1)
            x = generator.integers(columns - self.patch + 1)
            cut = images[:2, y : y + self.patch, x : x + self.patch]
            if _body_share(cut[1]) >= LEAST_BODY:
                break
        patch = self._mixed(cut.astype(np.float32), pair, generator)
        if generator.random() < 0.5:
            patch = patch[:, :, ::-1]
        return np.rot90(patch, k=int(generator.integers(4)), axes=(1, 2))

    def _mixed(self, patch: NDArray[np.float32], pair: Pair, generator: np.random.Generator) -> NDArray[np.float32]:
        """The input at a dose between that of the pair and the normal one, where the pair's noise was inserted."""
        if self.doses is None or pair.noise != "inserted" or pair.dose_fraction is None:
            return patch
        low, high = max(self.doses[0], pair.dose_fraction), self.doses[1]
        if low >= high:
            return patch
        dose = float(np.exp(generator.uniform(np.log(low), np.log(high))))
        return mix_dose(patch, pair.dose_fraction, dose)

    def _images(self, pair: Pair) -> NDArray[np.int16]:
        shard = self._mapped.pop(pair.shard, None)
        if shard is None:
            try:
                shard = open_shard(self.folder / pair.shard)
            except (OSError, ValueError):
                raise DataError(f"{self.folder} has lost {pair.shard}, or it is damaged; build the pairs again") from None
            if len(self._mapped) >= MAPPED_SHARDS:
                self._mapped.popitem(last=False)
        self._mapped[pair.shard] = shard
        return shard[pair.index]


def _body_share(image: NDArray[np.int16]) -> float:
    """Share of an image's cells that are body. Shape: (y, x)."""
    rows, columns = (n // CELL * CELL for n in image.shape)
    cells = image[:rows, :columns].reshape(rows // CELL, CELL, columns // CELL, CELL).mean(axis=(1, 3), dtype=np.float32)
    return float((cells > BODY_HU).mean())


def mix_dose(images: NDArray[np.float32], dose_fraction: float, new_dose_fraction: float) -> NDArray[np.float32]:
    """Low and normal dose at another dose fraction in between: part of the inserted noise is taken back.

    Inserted noise has a variance that goes with 1/dose − 1, so the part √((1/d' − 1)/(1/d − 1)) of it is that of the dose d'.
    Exact for the noise of photons; read-out noise, which goes with 1/dose², comes out too strong, and so does what ends at −1024 HU
    in air.

    Shape: (2, y, x), low and normal dose in HU.
    """
    share = np.float32(np.sqrt((1 / new_dose_fraction - 1) / (1 / dose_fraction - 1)))
    return np.stack([images[1] + share * (images[0] - images[1]), images[1]])
