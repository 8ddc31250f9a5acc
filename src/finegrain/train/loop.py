"""`fit()`: from the first batch to the last checkpoint, on one page."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from finegrain.config import LossConfig, TrainConfig
from finegrain.errors import DataError
from finegrain.networks.skeleton import ImageNetwork
from finegrain.pairs.dataset import Batch, PatchSampler
from finegrain.pairs.manifest import Pair
from finegrain.train.checkpointing import CHECKPOINT, Checkpoint, Course, check_run_folder, run_fingerprint, write_tensors
from finegrain.train.loss import DualDomainLoss
from finegrain.train.ranks import joined_ranks
from finegrain.train.record import RunRecord
from finegrain.train.stopping import StopSignals
from finegrain.train.validation import validate, validation_set

__all__ = ["CHECKPOINT", "FitResult", "check_run_folder", "fit", "run_fingerprint", "schedule"]

Network = TypeVar("Network", bound=ImageNetwork)

Progress = Callable[[int, dict[str, float]], None]
"""Called with the number of finished steps and the latest figures."""

AHEAD = 2
"""Batches that are cut before they are asked for; a default, taken from nowhere."""

NAN_BATCH = "nan-batch.pt"
"""What `fit` leaves of a step that came out infinite: its number, batch, pairs, and the weights it started from."""


@dataclass(frozen=True)
class FitResult(Generic[Network]):
    """The network with the weights that did best on the validation pairs, on the CPU, and how training went."""

    network: Network
    history: list[dict[str, float]]
    best_step: int
    seconds: float


def fit(
    network: Network,
    pairs: list[Pair],
    folder: Path,
    *,
    train: TrainConfig,
    loss: LossConfig,
    run_folder: Path,
    progress: Progress | None = None,
) -> FitResult[Network]:
    """Train a network on the `train` pairs; keep the averaged weights with the lowest validation error.

    `run_folder` gets the files of `RunRecord` and a checkpoint, from which a run that was stopped or killed goes on to the same
    bits. Under torchrun each process calls this alike, takes its part of each batch and gives the same result; the first writes.

    Raises: DataError if the folder's checkpoint is of another network, other settings or other pairs, if the disk is full, or if
        the loss is no longer finite; Stopped, a SystemExit, after SIGTERM or SIGINT.
    """
    check_run_folder(run_folder, pairs, network=network.config, train=train, loss=loss)
    torch.set_num_threads(train.threads)
    # Exponentials of long vectors fall below the smallest normal number, where a CPU is so slow that steps of CTformer took five
    # times as long. As 0 they change nothing.
    torch.set_flush_denormal(True)
    run_folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined_ranks(train.device))
        stop = stack.enter_context(StopSignals())
        sampler = PatchSampler(
            [p for p in pairs if p.split == "train"],
            folder,
            patch=train.patch,
            batch=ranks.shared(train.batch),
            hu_range=network.hu_range,
            seed=train.seed,
            doses=train.doses,
        )
        validation = validation_set([p for p in pairs if p.split == "validation"], folder, network.hu_range)
        generator = torch.Generator().manual_seed(train.seed)  # the only source of chance beside the sampler
        criterion = DualDomainLoss(loss, generator).to(ranks.device)
        network.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(network.parameters(), lr=train.learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
        average = deepcopy(network).requires_grad_(False)
        best = deepcopy(average)
        course = Course()
        checkpoint = Checkpoint(
            run_folder,
            run_fingerprint(pairs, network=network.config, train=train, loss=loss),
            course=course,
            generator=generator,
            parts={"network": network, "average": average, "best": best, "optimiser": optimiser},
        )
        checkpoint.load()
        with checkpoint.survives_failed_writes():
            record = stack.enter_context(RunRecord(run_folder, course, tensorboard=train.tensorboard)) if ranks.is_first else None
        trained = ranks.trained(network, compiled=train.compile)
        network.train()
        batches = stack.enter_context(closing(batches_ahead(sampler, range(course.step, train.steps), ranks.part)))
        started = time.perf_counter() - course.seconds

        for step in range(course.step, train.steps):
            rate = train.learning_rate * schedule(step, train)
            for group in optimiser.param_groups:
                group["lr"] = rate
            asked = time.perf_counter()
            batch = next(batches)
            course.waiting += time.perf_counter() - asked
            inputs, targets = (ranks.placed(images) for images in (batch.inputs, batch.targets))
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=train.bf16):
                outputs = trained(inputs, batch.acquisition.to(ranks.device))
            error = criterion(outputs, targets, inputs)
            optimiser.zero_grad(set_to_none=True)
            error.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), train.clip).item()
            mean_error, stops = ranks.agree(error, stops=stop.number is not None)
            if not math.isfinite(mean_error + norm):
                if record:
                    batches.close()  # who cuts ahead shares the sampler
                    with checkpoint.survives_failed_writes():
                        held = {"step": step + 1, **sampler.batch_at(step)._asdict(), "network": network.state_dict()}
                        write_tensors(run_folder / NAN_BATCH, {**held, "pairs": [pair.key for pair in sampler.pairs_at(step)]})
                raise DataError(
                    f"step {step + 1} has a loss of {mean_error:.3g} and a gradient of norm {norm:.3g}, which must be finite; "
                    f"its batch and the weights are in {run_folder / NAN_BATCH}: look at the batch, or lower train.learning_rate"
                )
            optimiser.step()
            # A young average follows closely, or it would still hold the untrained weights.
            decay = min(train.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
                for kept, now in zip(average.buffers(), network.buffers(), strict=True):
                    kept.copy_(now)  # batch statistics are averages already

            course.add_step(mean_error, seconds=time.perf_counter() - started)
            validates = course.step % train.validate_every == 0 or course.step == train.steps
            if validates:
                measures = validate(average, validation)
                if measures["rmse_hu"] < course.best_error:
                    course.best_error, course.best_step = measures["rmse_hu"], course.step
                    best.load_state_dict(average.state_dict())
                course.add_validation(measures, rate=rate, steps=train.steps)
            if record:
                with checkpoint.survives_failed_writes():
                    record.add_step({"step": course.step, "loss": mean_error, "gradient_norm": norm, "lr": rate})
                    if validates:
                        record.add_validation(best)
                    if validates or stops or checkpoint.is_due(train):
                        record.settle()
                        checkpoint.save(only="best" if course.step == train.steps else None)
                if progress:
                    progress(course.step, course.history[-1] if course.history else {})
            if stops:
                raise stop.stopped(run_folder, step=course.step, says=ranks.is_first)
    return FitResult(best.cpu().eval(), course.history, course.best_step, course.seconds)


def batches_ahead(sampler: PatchSampler, steps: range, part: slice) -> Generator[Batch, None, None]:
    """This process's part of the batch of each step, cut in a thread of its own while the steps before are computed."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(sampler.batch_at, step, part) for step in steps[:AHEAD])
        for step in steps:
            if step + AHEAD in steps:
                waiting.append(thread.submit(sampler.batch_at, step + AHEAD, part))
            yield waiting.popleft().result()


def schedule(step: int, train: TrainConfig) -> float:
    """Factor on the peak learning rate: linear warm-up, then a cosine down to one percent."""
    if step < train.warmup:
        return (step + 1) / train.warmup
    along = (step - train.warmup) / max(1, train.steps - train.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along))
