"""Training throughput of finegrain's networks and of those of others: the trainer's own steps, on the same patches, in turns.

Run: python benchmarks/throughput.py STORE [--size s] [--device cpu] [--batch 8] [--steps 3] [--threads 2] [--bf16] [--json FILE]
STORE is what finegrain pairs has built. Each network is trained by `fit`, in rounds, so that a busy machine is unfair to all alike;
of each round the first step, which warms up, and the last one, which validates, do not count. Memory on a CPU is that by which a
process of its own grows (Linux only), on a GPU what PyTorch has allocated at most. Patches have 64² pixels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from finegrain.config import LossConfig, NetworkConfig, TrainConfig, config_of
from finegrain.files import write_whole
from finegrain.networks.blocks import parameter_count
from finegrain.networks.peers import PEERS, build_peer
from finegrain.networks.skeleton import ImageNetwork, build_network, count_macs
from finegrain.pairs.dataset import Batch
from finegrain.pairs.manifest import Pair, read_manifest
from finegrain.train import loop

PATCH = 64
ROUNDS = 3
FAMILIES = ("convolution", "attention", "hybrid")
AGAINST = ("RED-CNN", "CTformer")
"""The networks of others whose speed ours is divided by."""
Builder = Callable[[], ImageNetwork]
"""Gives a fresh network, as `fit` takes it."""


@dataclass(frozen=True)
class Settings:
    """How all networks are trained.

    Attributes:
        steps: timed steps of a network in a round.
        batch: patches of a step.
        threads: of PyTorch, on a CPU.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    batch: int = 8
    steps: int = 3
    threads: int = 2
    bf16: bool = False

    def train(self) -> TrainConfig:
        """For `fit`: a step to warm up, the steps that are timed, and one that validates and writes the only checkpoint."""
        total = self.steps + 2
        return TrainConfig(
            steps=total,
            batch=self.batch,
            patch=PATCH,
            learning_rate=1e-4,  # the speed does not depend on it
            warmup=0,
            validate_every=total,
            checkpoint_every=total,
            threads=self.threads,
            device=self.device,
            bf16=self.bf16,
        )


@dataclass
class Timing:
    """The steps of a network that count: seconds of each, seconds that each waited for its batch, and the most memory in bytes."""

    step_seconds: list[float] = field(default_factory=list)
    waiting_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def add(self, other: Timing) -> None:
        """Another round."""
        self.step_seconds += other.step_seconds
        self.waiting_seconds += other.waiting_seconds
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def time_fit(build: Builder, pairs: list[Pair], store: Path, settings: Settings) -> Timing:
    """One short training run of a fresh network."""
    ends: list[float] = []
    peaks: list[int] = []

    def after_step(step: int, _: dict[str, float]) -> None:
        ends.append(time.perf_counter())
        peaks.append(torch.cuda.max_memory_allocated() if settings.device == "cuda" else _peak_rss())

    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as run, _timed_batches() as waits:
        loop.fit(build(), pairs, store, train=settings.train(), loss=LossConfig(), run_folder=Path(run), progress=after_step)
    seconds = [after - before for before, after in pairwise(ends)]
    return Timing(seconds[:-1], waits[1:-1], peaks[-2])


@contextmanager
def _timed_batches() -> Iterator[list[float]]:
    """Inside, each batch that `fit` asks for leaves in the list the seconds that it waited."""
    given, seconds = loop.batches_ahead, list[float]()

    def timed(*arguments: Any) -> Generator[Batch, None, None]:
        with closing(given(*arguments)) as batches:
            asked = time.perf_counter()
            for batch in batches:
                seconds.append(time.perf_counter() - asked)
                yield batch
                asked = time.perf_counter()

    loop.batches_ahead = timed
    try:
        yield seconds
    finally:
        loop.batches_ahead = given


def grown_bytes(build: Builder, pairs: list[Pair], store: Path, settings: Settings) -> int:
    """By how much this process, which must be a fresh one, grows while it trains."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _peak_rss()
    return time_fit(build, pairs, store, settings).peak_bytes - before


def _peak_rss() -> int:
    """The most memory that this process has held, in bytes; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def find_pairs(store: Path) -> list[Pair]:
    """The training pairs of a store, and one to validate on, which decides nothing here."""
    usable = [pair for pair in read_manifest(store) if pair.is_usable]
    train = [pair for pair in usable if pair.split == "train"]
    watched = [pair for pair in usable if pair.split == "validation"] or train
    return [*train, *(pair.model_copy(update={"split": "validation"}) for pair in watched[:1])]


def builders(size: str) -> dict[str, Builder]:
    """Every network that takes part, by name."""
    configs = {family: config_of(NetworkConfig, {"size": size, "family": family}) for family in FAMILIES}
    ours = {f"finegrain-{size} {family}": partial(build_network, config, seed=0) for family, config in configs.items()}
    return {**ours, **{name: partial(build_peer, name, seed=0) for name in PEERS}}


def rows_of(timings: dict[str, Timing], networks: dict[str, ImageNetwork], batch: int) -> list[dict[str, Any]]:
    """The table: one row for each network."""
    per_second = {name: batch / statistics.median(timing.step_seconds) for name, timing in timings.items()}
    return [
        {
            "network": name,
            "parameters": parameter_count(networks[name]),
            "gmac_per_patch": count_macs(networks[name], size=PATCH) / 1e9,
            "steps_per_second": per_second[name] / batch,
            "patches_per_second": per_second[name],
            "waiting_share": sum(timing.waiting_seconds) / sum(timing.step_seconds),
            "peak_mb": timing.peak_bytes / 1e6,
            **{f"ratio_to_{peer}": per_second[name] / per_second[peer] for peer in AGAINST},
        }
        for name, timing in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--size", default="s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="timed steps of each network in each of three rounds")
    parser.add_argument("--threads", type=int, default=Settings.threads)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = Settings(**{name: getattr(arguments, name) for name in ("device", "batch", "steps", "threads", "bf16")})
    pairs, takes_part = find_pairs(arguments.store), builders(arguments.size)

    timings = {name: Timing() for name in takes_part}
    for _ in range(ROUNDS):
        for name, build in takes_part.items():
            timings[name].add(time_fit(build, pairs, arguments.store, settings))
    if settings.device == "cpu":
        few = Settings(**{**asdict(settings), "steps": 1})
        for name, build in takes_part.items():
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                timings[name].peak_bytes = fresh.apply(grown_bytes, (build, pairs, arguments.store, few))

    rows = rows_of(timings, {name: build() for name, build in takes_part.items()}, settings.batch)
    on = torch.cuda.get_device_name() if settings.device == "cuda" else f"CPU, {settings.threads} threads"
    precision = "bfloat16" if settings.bf16 else "float32"
    print(f"{settings.batch} patches of {PATCH}² a step, {on}, {precision}, torch {torch.__version__}")
    print(
        f"{'':24}{'parameters':>11}{'GMAC/patch':>11}{'steps/s':>9}{'patches/s':>10}{'waiting':>9}{'peak MB':>9}"
        + "".join(f"{f'× {peer}':>11}" for peer in AGAINST)
    )
    for row in rows:
        print(
            f"{row['network']:24}{row['parameters']:11,}{row['gmac_per_patch']:11.3f}{row['steps_per_second']:9.2f}"
            f"{row['patches_per_second']:10.1f}{row['waiting_share']:9.1%}{row['peak_mb']:9.0f}"
            + "".join(f"{row[f'ratio_to_{peer}']:11.2f}" for peer in AGAINST)
        )
    if arguments.json:
        told = {**asdict(settings), "size": arguments.size, "on": on, "networks": rows}
        write_whole(arguments.json, json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
