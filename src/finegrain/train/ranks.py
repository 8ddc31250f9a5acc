"""One training run over several processes: `torchrun` starts them, each takes its part of every batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from finegrain.errors import ConfigError

LONGEST_WAIT = timedelta(days=1)
"""Others wait while the first rank makes pairs; a default, taken from nowhere. A rank that dies is noticed by torchrun at once."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def shared(self, batch: int) -> int:
        """The size of a batch, if it can be shared evenly: only then is the mean of the parts' losses that of the batch."""
        if batch % self.world:
            raise ConfigError(f"a batch of {batch} cannot be shared evenly by {self.world} processes; change train.batch")
        return batch

    @property
    def part(self) -> slice:
        """This process's part of a batch: every so many, since neighbours in a batch are alike."""
        return slice(self.rank, None, self.world)

    def placed(self, images: Tensor) -> Tensor:
        """Images as this process computes with them."""
        return images.to(self.device, memory_format=torch.channels_last)

    def trained(self, network: nn.Module, *, compiled: bool) -> nn.Module:
        """The network as it is called in training: its gradients are the mean over all processes."""
        if self.world > 1:
            # The strides of a 1 × 1 kernel have two spellings, in channels-last and not; it is the same memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            network = nn.parallel.DistributedDataParallel(network)
        return torch.compile(network) if compiled else network  # type: ignore[return-value]

    def agree(self, error: Tensor, *, stops: bool) -> tuple[float, bool]:
        """The mean loss over all processes, and whether any of them was told to stop: then all do, after the same step."""
        told = torch.stack([error.detach(), torch.full_like(error, stops)])
        if self.world > 1:
            distributed.all_reduce(told)
        mean, any_stops = (told / self.world).tolist()
        return mean, any_stops > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def joined_ranks(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the processes that torchrun has started; alone if it has not. Inside itself it gives the same again.

    Raises: ConfigError if there is no GPU and one is asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device is cuda, but PyTorch finds no GPU here; use cpu or auto, or install a CUDA build of PyTorch"
        )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if "RANK" not in os.environ:
        yield Ranks(0, 1, torch.device("cuda" if on_gpu else "cpu"))
        return
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    joins = not distributed.is_initialized()
    if joins:
        if on_gpu:
            torch.cuda.set_device(place)
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT, device_id=place if on_gpu else None)
    try:
        yield Ranks(rank, world, place)
    finally:
        if joins:
            distributed.destroy_process_group()
