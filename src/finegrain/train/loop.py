"""`fit()`: from the first batch to the last checkpoint, on one page."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finegrain.config import LossConfig, NetworkConfig, TrainConfig
from finegrain.errors import DataError
from finegrain.files import write_whole
from finegrain.hu import HURange
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork
from finegrain.pairs.dataset import PatchSampler
from finegrain.pairs.manifest import Pair
from finegrain.train.loss import DualDomainLoss

Progress = Callable[[int, dict[str, float]], None]
"""Called with the number of finished steps and the latest figures."""


CHECKPOINT, HISTORY = "checkpoint.pt", "history.jsonl"


@dataclass(frozen=True)
class FitResult:
    """The network with the weights that did best on the validation pairs, and how training went."""

    network: DenoisingNetwork
    history: list[dict[str, float]]
    best_step: int
    seconds: float


def fit(
    network: DenoisingNetwork,
    pairs: list[Pair],
    folder: Path,
    *,
    train: TrainConfig,
    loss: LossConfig,
    run_folder: Path,
    progress: Progress | None = None,
) -> FitResult:
    """Train a network on the `train` pairs; keep the averaged weights with the lowest validation error.

    `run_folder` gets `history.jsonl` and a checkpoint at each validation, from which a run that was stopped goes on.

    Raises: DataError if the folder's checkpoint is of another network, other settings or other pairs.
    """
    check_run_folder(run_folder, pairs, network=network.config, train=train, loss=loss)
    torch.set_num_threads(train.threads)
    run_folder.mkdir(parents=True, exist_ok=True)
    hu_range = network.hu_range
    sampler = PatchSampler(
        [p for p in pairs if p.split == "train"],
        folder,
        patch=train.patch,
        batch=train.batch,
        hu_range=hu_range,
        seed=train.seed,
    )
    validation = _validation_set([p for p in pairs if p.split == "validation"], folder, hu_range)
    criterion = DualDomainLoss(loss, torch.Generator().manual_seed(train.seed))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=train.learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    average = deepcopy(network).requires_grad_(False)
    best = deepcopy(average)
    state: dict[str, Any] = {"step": 0, "best_step": 0, "best_error": math.inf, "seconds": 0.0, "history": []}
    fingerprint = run_fingerprint(pairs, network=network.config, train=train, loss=loss)
    path = run_folder / CHECKPOINT
    checkpoint = _Checkpoint(path, fingerprint, network, average, best, optimiser, criterion.generator, state)
    checkpoint.load()

    started = time.perf_counter() - state["seconds"]
    running, counted = 0.0, 0
    network.train()
    for step in range(state["step"], train.steps):
        for group in optimiser.param_groups:
            group["lr"] = train.learning_rate * schedule(step, train)
        inputs, targets = sampler.batch_at(step)
        error = criterion(network(inputs.contiguous(memory_format=torch.channels_last)), targets)
        optimiser.zero_grad(set_to_none=True)
        error.backward()
        if not torch.isfinite(error):
            torch.save({"inputs": inputs, "targets": targets, "step": step}, run_folder / "nan-batch.pt")
            raise FloatingPointError(f"the loss of step {step} is not finite; its batch is in {run_folder / 'nan-batch.pt'}")
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.clip)
        optimiser.step()
        # A young average follows closely, or it would still hold the untrained weights.
        decay = min(train.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        running, counted = running + error.item(), counted + 1

        done = step + 1
        if done % train.validate_every == 0 or done == train.steps:
            row = {"step": done, "loss": running / counted, **validate(average, validation, hu_range)}
            row["lr"] = optimiser.param_groups[0]["lr"]
            row["seconds"] = state["seconds"] = round(time.perf_counter() - started, 1)
            running, counted = 0.0, 0
            if row["rmse_hu"] < state["best_error"]:
                state["best_error"], state["best_step"] = row["rmse_hu"], done
                best.load_state_dict(average.state_dict())
            state["step"] = done
            state["history"].append(row)
            write_whole(run_folder / HISTORY, "".join(json.dumps(r) + "\n" for r in state["history"]))
            checkpoint.save()
            network.train()
        if progress:
            progress(done, state["history"][-1] if state["history"] else {})
    return FitResult(best.eval(), state["history"], state["best_step"], state["seconds"])


def run_fingerprint(pairs: list[Pair], *, network: NetworkConfig, train: TrainConfig, loss: LossConfig) -> str:
    """Hex digits that change with all that decides a run's weights: network, settings, training and validation pairs."""
    used = [(pair.split, pair.patient, pair.sha256) for pair in pairs if pair.split in ("train", "validation")]
    parts = [network.hash(), train.hash(), loss.hash(), used]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_run_folder(run_folder: Path, pairs: list[Pair], *, network: NetworkConfig, train: TrainConfig, loss: LossConfig) -> None:
    """Whether a run may go on in this folder.

    Raises: DataError if the folder's checkpoint is of another network, other settings or other pairs.
    """
    path = run_folder / CHECKPOINT
    if not path.is_file():
        return
    held = torch.load(path, weights_only=True).get("fingerprint")
    if held != run_fingerprint(pairs, network=network, train=train, loss=loss):
        raise DataError(
            f"{run_folder} holds the training of another configuration; give another folder with --out or remove {run_folder}"
        )


def schedule(step: int, train: TrainConfig) -> float:
    """Factor on the peak learning rate: linear warm-up, then a cosine down to one percent."""
    if step < train.warmup:
        return (step + 1) / train.warmup
    along = (step - train.warmup) / max(1, train.steps - train.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along))


@torch.no_grad()
def validate(network: DenoisingNetwork, validation: list[tuple[torch.Tensor, torch.Tensor]], hu_range: HURange) -> dict[str, float]:
    """RMSE in HU against the normal dose, over the middle of each validation slice; what exceeds 1000 HU counts as 1000 HU."""
    network.eval()
    squared = []
    for inputs, targets in validation:
        ours, theirs = (t.numpy().astype(np.float64) * hu_range.span + hu_range.low for t in (network(inputs), targets))
        squared.append(((np.minimum(ours, 1000) - np.minimum(theirs, 1000)) ** 2).mean())
    return {"rmse_hu": float(np.sqrt(np.mean(squared)))}


def _validation_set(pairs: list[Pair], folder: Path, hu_range: HURange, side: int = 256) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same central crops at every validation, at most sixteen, spread over the pairs."""
    if not pairs:
        raise DataError("no validation pairs: the manifest has none in its split 'validation'")
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(16, len(pairs))).round().astype(int))]
    crops = []
    for pair in chosen:
        images = pair.images(folder)
        rows, columns = (min(side, length) // STRIDE * STRIDE for length in images.shape[1:])
        top, left = (images.shape[1] - rows) // 2, (images.shape[2] - columns) // 2
        unit = hu_range.to_unit(images[:2, top : top + rows, left : left + columns].astype(np.float32))
        crops.append((torch.from_numpy(unit[None, 0:1].copy()), torch.from_numpy(unit[None, 1:2].copy())))
    return crops


class _Checkpoint:
    """Everything a run needs to go on, written whole or not at all."""

    def __init__(self, path: Path, fingerprint: str, *parts: Any) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.network, self.average, self.best, self.optimiser, self.generator, self.state = parts

    def save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        held = {name: getattr(self, name).state_dict() for name in ("network", "average", "best", "optimiser")}
        told = {"fingerprint": self.fingerprint, "generator": self.generator.get_state(), "state": self.state}
        torch.save({**held, **told}, temporary)
        temporary.replace(self.path)

    def load(self) -> None:
        if not self.path.is_file():
            return
        held = torch.load(self.path, weights_only=True)
        for name in ("network", "average", "best", "optimiser"):
            getattr(self, name).load_state_dict(held[name])
        self.generator.set_state(held["generator"])
        self.state.update(held["state"])
