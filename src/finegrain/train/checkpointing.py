"""The checkpoint of a run: all that it needs to go on to the same bits, in one file that is there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from finegrain.config import Config, LossConfig, TrainConfig
from finegrain.errors import DataError
from finegrain.files import whole_file
from finegrain.pairs.manifest import Pair

CHECKPOINT = "checkpoint.pt"

FORMAT = 2
"""Raised whenever a run of an earlier program could not go on to the same bits: another network of that name, other batches."""

NOT_DECIDING = {"threads", "device", "compile", "checkpoint_every", "checkpoint_minutes", "tensorboard"}
"""Settings that a run may change when it goes on: they decide where and how fast it is computed, not what."""


@dataclass
class Course:
    """How far a run has come."""

    step: int = 0
    best_step: int = 0
    best_error: float = math.inf
    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds of these in which the next batch was not there yet."""
    loss_sum: float = 0.0
    """Of the steps since the last validation."""
    loss_count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    losses_bytes: int = 0
    """Length of the file of losses at this step: what is beyond is of steps that will be done again."""

    def add_step(self, loss: float, *, seconds: float) -> None:
        """Count a finished step; `seconds` since the first one, pauses left out."""
        self.step, self.seconds = self.step + 1, seconds
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1

    def add_validation(self, measures: dict[str, float], *, rate: float, steps: int) -> None:
        """A row of the history, with the mean loss since the last one and the time that is left of all `steps`."""
        row = {"step": self.step, "loss": self.loss_sum / self.loss_count, **measures, "lr": rate}
        left = self.seconds / self.step * (steps - self.step)
        self.history.append(
            {**row, "seconds": round(self.seconds, 1), "seconds_left": round(left, 1), "seconds_waiting": round(self.waiting, 2)}
        )
        self.loss_sum, self.loss_count = 0.0, 0


class HasState(Protocol):
    """A network or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Checkpoint:
    """Weights, averaged and best weights, optimiser, course and random state of a run. Batches are a function of the step.

    Args:
        run_folder: where `checkpoint.pt` stands.
        fingerprint: of `run_fingerprint`.
        course: taken up by `load`.
        generator: the only source of chance in the loop.
        parts: what else has a state, by name.
    """

    def __init__(
        self, run_folder: Path, fingerprint: str, *, course: Course, generator: torch.Generator, parts: dict[str, HasState]
    ) -> None:
        self.path, self.fingerprint = run_folder / CHECKPOINT, fingerprint
        self.course, self.generator, self.parts = course, generator, parts
        self.saved_step, self.saved_at = 0, time.monotonic()

    def load(self) -> None:
        """Take up the run where its checkpoint is; without one, change nothing."""
        if not self.path.is_file():
            return
        held = _read(self.path)
        for name, state in held["parts"].items():
            self.parts[name].load_state_dict(state)
        self.generator.set_state(held["generator"])
        for name, value in held["course"].items():
            setattr(self.course, name, value)
        self.saved_step = self.course.step

    def is_due(self, train: TrainConfig) -> bool:
        """Whether steps or minutes since the last one ask for a checkpoint now."""
        return self.course.step % train.checkpoint_every == 0 or time.monotonic() - self.saved_at > 60 * train.checkpoint_minutes

    def save(self, *, only: str | None = None) -> None:
        """Write the file; until it is whole on the disk, the one before keeps its place.

        Args:
            only: of a run that is finished, the one part that is still of use.
        """
        held = {
            "fingerprint": self.fingerprint,
            "course": vars(self.course),
            "generator": self.generator.get_state(),
            "parts": {name: part.state_dict() for name, part in self.parts.items() if only in (None, name)},
        }
        write_tensors(self.path, held)
        self.saved_step, self.saved_at = self.course.step, time.monotonic()

    @contextmanager
    def survives_failed_writes(self) -> Iterator[None]:
        """Inside, a disk that takes no more is told in one line that says what is left.

        Raises: DataError.
        """
        try:
            yield
        except OSError as error:
            held = f"its checkpoint of step {self.saved_step} is whole" if self.saved_step else "it has no checkpoint yet"
            raise DataError(
                f"cannot write to {self.path.parent} at step {self.course.step}: {error.strerror}; {held}: "
                "make room and give the same command again"
            ) from None


def run_fingerprint(pairs: list[Pair], *, network: Config, train: TrainConfig, loss: LossConfig) -> str:
    """Hex digits that change with all that decides a run's weights: network, settings, training and validation pairs."""
    used = [(pair.split, pair.patient, pair.sha256) for pair in pairs if pair.split in ("train", "validation")]
    unused = {"doses"} if train.doses is None else set()  # what was trained before there was this setting is what it was
    parts = [FORMAT, network.hash(), train.model_dump_json(exclude=NOT_DECIDING | unused), loss.hash(), used]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_run_folder(run_folder: Path, pairs: list[Pair], *, network: Config, train: TrainConfig, loss: LossConfig) -> None:
    """Whether a run may go on in this folder.

    Raises: DataError if the folder's checkpoint is of another network, other settings or other pairs, or damaged.
    """
    path = run_folder / CHECKPOINT
    if path.is_file() and _read(path).get("fingerprint") != run_fingerprint(pairs, network=network, train=train, loss=loss):
        raise DataError(
            f"{run_folder} holds the training of another configuration; give another folder with --out or remove {run_folder}"
        )


def write_tensors(path: Path, held: dict[str, Any]) -> None:
    """Write what `torch.load(weights_only=True)` gives back, whole or not at all."""
    # Through memory, because the writer of torch tells a full disk as an error of its own that says nothing.
    buffer = io.BytesIO()
    torch.save(held, buffer)
    write_bytes_whole(path, buffer.getbuffer())


def write_bytes_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all. Raises: OSError."""
    with whole_file(path) as file:
        file.write(data)


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise DataError(f"{path} is damaged; remove it to train from the start") from None
