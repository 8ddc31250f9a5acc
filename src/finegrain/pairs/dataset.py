"""Pairs → patches as tensors: evenly over body regions, patients, kernels and doses, inside the body, the same for one seed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finegrain.acquisition import Acquisition
from finegrain.errors import ConfigError, DataError
from finegrain.hu import HURange
from finegrain.pairs.balance import balanced_weights
from finegrain.pairs.manifest import Pair, balance_factors, open_shard
from finegrain.simulate.fbp import kernel_of_header

BODY_HU = -950.0
"""A cell whose mean is above this is body; aerated lung lies at −900 to −700 HU, air around the patient near −1000."""
CELL = 8
"""Pixels a side of these cells: enough of them that noise does not lift air."""
LEAST_BODY = 0.25
"""Share of a patch that must be body."""
MAPPED_SHARDS = 256
"""Shards that are mapped at a time: each takes a file descriptor, of which a process often has 1024."""
ATTEMPTS = 16
"""Places that are drawn for a patch; the last one is taken if no other shows enough of the body."""
TOLD = 0.5
"""How often a patch comes with its dose, and how often with its kernel: a network must do with either and without."""


class Batch(NamedTuple):
    """A training batch.

    Attributes:
        inputs: low dose in unit range, shape (b, 1, patch, patch).
        targets: normal dose, alike.
        acquisition: what the network is told of each patch, as `Acquisition.numbers`; zeros for what it is not. Shape: (b, 4).
    """

    inputs: Tensor
    targets: Tensor
    acquisition: Tensor


@dataclass(frozen=True)
class _Draws:
    """All that chance decides in a batch.

    Attributes:
        pairs: one for each patch.
        corners: places of its corner as fractions of the room there is, one after another until one shows enough of the body.
        turns: which of the eight flips and turns.
        doses: where its dose lies between the limits.
        told: whether the network is told the dose, and the kernel.
    """

    pairs: list[Pair]
    corners: NDArray[np.float64]
    turns: NDArray[np.int64]
    doses: NDArray[np.float64]
    told: NDArray[np.bool_]


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
        self._half_per_mm = {name: half_per_mm_of(name) for name in {pair.kernel for pair in pairs}}
        self._mapped: OrderedDict[str, NDArray[np.int16]] = OrderedDict()
        for pair in {(pair.shard, pair.rows, pair.columns): pair for pair in self._pairs}.values():
            shape = (pair.rows, pair.columns) if pair.rows and pair.columns else pair.images(folder).shape[1:]
            if min(shape) < patch:
                raise DataError(f"pair {pair.key} has {shape} pixels, smaller than a patch of {patch}")

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped: a worker maps for itself what it reads."""
        return self.__dict__ | {"_mapped": OrderedDict()}

    def __getitem__(self, step: int) -> Batch:
        return self.batch_at(step)

    def batch_at(self, step: int, part: slice = slice(None)) -> Batch:
        """The batch of a step, or part of it: the other patches are then not cut. Any step can be asked for."""
        draws = self._draws(step)
        patches, told = zip(*(self._patch(draws, k) for k in range(self.batch)[part]), strict=True)
        unit = self.hu_range.to_unit(np.stack(patches))
        inputs, targets = (torch.from_numpy(np.ascontiguousarray(unit[:, i : i + 1])) for i in (0, 1))
        return Batch(inputs, targets, torch.from_numpy(np.stack(told)))

    def pairs_at(self, step: int) -> list[Pair]:
        """The pairs that the patches of a step are cut from."""
        return self._draws(step).pairs

    def _draws(self, step: int) -> _Draws:
        """All that chance decides in a step."""
        generator = np.random.default_rng([self.seed, step])
        places = (generator.random() + np.arange(self.batch)) / self.batch * self._cumulative[-1]
        chosen = np.minimum(np.searchsorted(self._cumulative, places, side="right"), len(self._pairs) - 1)
        return _Draws(
            pairs=[self._pairs[k] for k in chosen],
            corners=generator.random((self.batch, ATTEMPTS, 2)),
            turns=generator.integers(8, size=self.batch),
            doses=generator.random(self.batch),
            told=generator.random((self.batch, 2)) < TOLD,
        )

    def _patch(self, draws: _Draws, k: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Input and target, cropped, flipped and turned, and what the network is told. Shapes: (2, patch, patch), HU; (4,)."""
        pair = draws.pairs[k]
        images = self._images(pair)
        room = np.array(images.shape[1:]) - self.patch + 1
        for y, x in (draws.corners[k] * room).astype(int):
            cut = images[:2, y : y + self.patch, x : x + self.patch]
            if _body_share(cut[1]) >= LEAST_BODY:
                break
        patch, dose = cut.astype(np.float32), pair.dose_fraction
        if (mixed := self._mixed_dose(pair, draws.doses[k])) is not None and dose is not None:
            patch, dose = mix_dose(patch, dose, mixed), mixed
        if draws.turns[k] >= 4:
            patch = patch[:, :, ::-1]
        told = self._told(pair, dose=dose if draws.told[k, 0] else None, kernel=draws.told[k, 1])
        return np.rot90(patch, k=int(draws.turns[k]) % 4, axes=(1, 2)), told.numbers()

    def _mixed_dose(self, pair: Pair, draw: float) -> float | None:
        """A dose between that of the pair and the normal one, where the pair's noise was inserted and doses are to be mixed."""
        if self.doses is None or pair.noise != "inserted" or pair.dose_fraction is None:
            return None
        low, high = max(self.doses[0], pair.dose_fraction), self.doses[1]
        return float(low * (high / low) ** draw) if low < high else None

    def _told(self, pair: Pair, *, dose: float | None, kernel: bool) -> Acquisition:
        """What the network is told of a patch."""
        half_per_mm = self._half_per_mm[pair.kernel] if kernel else None
        return Acquisition(dose, half_per_mm, pair.pixel_mm if half_per_mm else None)

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


def half_per_mm_of(kernel: str) -> float | None:
    """Where a kernel passes one half, found by its name as for a series that is denoised; None if it is not known."""
    try:
        return kernel_of_header(kernel).half_per_mm
    except ConfigError:
        return None


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
