"""Pairs on disk: shards of int16 pixels and, beside each, what is known of them. A task is there whole or not at all.

STORE/shards/<task>.npy      int16 HU, shape (pair, image, y, x), to be memory-mapped
STORE/tasks/<task>.json      the rows of the task's pairs, and what was left out; written last, so that it proves the rest
STORE/splits.json            on which side each patient stands
STORE/manifest.csv           everything, once all tasks are done (see `manifest`)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from finegrain.errors import DataError
from finegrain.files import whole_file, write_whole
from finegrain.pairs.manifest import Pair, open_shard

SHARDS, TASKS, SPLITS, LOCK = "shards", "tasks", "splits.json", ".lock"


@dataclass(frozen=True)
class Made:
    """What a task has made.

    Attributes:
        pairs: its rows; split, region and verdict are provisional, for they are decided over the whole store.
        features: of each pair, for the region; empty where the region is known.
        left_out: slices that can give no pair, with the reason; safe to show.
        unreadable: slices that could not be read this time, with the reason; safe to show. The next build tries again.
    """

    pairs: list[Pair] = field(default_factory=list)
    features: list[list[float]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The store, for one builder alone; the lock ends with the process, however that ends.

    Raises: DataError if another process is building there, or the folder holds other things.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).is_file():
        raise DataError(f"{folder} is not empty and was not made by finegrain pairs; give a new folder: nothing is overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another process is building pairs in {folder}; wait for it, or give another folder") from None
        for place in (folder, folder / SHARDS, folder / TASKS):
            for leftover in place.glob(".*.tmp"):  # of a killed build; what has its right name is whole
                leftover.unlink()
        yield


def is_done(folder: Path, task: str) -> bool:
    """Whether a task is finished: nothing of it damaged, and nothing that could not be read."""
    if not (folder / TASKS / f"{task}.json").is_file():
        return False
    try:
        return not get_task(folder, task).unreadable
    except DataError:
        return False


def done_tasks(folder: Path) -> set[str]:
    """The names of the finished tasks."""
    return {path.stem for path in (folder / TASKS).glob("*.json")}


def put_task(folder: Path, task: str, images: Sequence[NDArray[np.int16]], made: Made) -> Made:
    """Store the images and rows of a task; images of one shape share a shard. Gives the rows with their places and hashes.

    Shape: each of images (image, y, x).
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(images):
        by_shape[one.shape].append(number)
    placed = list(made.pairs)
    for k, numbers in enumerate(by_shape.values()):
        shard = f"{SHARDS}/{task}.npy" if k == 0 else f"{SHARDS}/{task}.{k}.npy"
        _write_array(folder / shard, np.stack([images[number] for number in numbers]))
        for index, number in enumerate(numbers):
            one = images[number]
            placed[number] = placed[number].model_copy(
                update={"shard": shard, "index": index, "sha256": _sha256(one), "normal_sha256": _sha256(one[1])}
            )
    made = Made(placed, made.features, made.left_out, made.unreadable)
    rows = {
        "pairs": [pair.model_dump() for pair in made.pairs],
        "features": made.features,
        "left_out": made.left_out,
        "unreadable": made.unreadable,
    }
    write_whole(folder / TASKS / f"{task}.json", json.dumps(rows) + "\n")
    return made


def get_task(folder: Path, task: str) -> Made:
    """What a finished task has made.

    Raises: DataError if its rows are damaged or a shard that they name is gone or cut off.
    """
    path = folder / TASKS / f"{task}.json"
    try:
        rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        pairs = [Pair.model_validate(row) for row in rows["pairs"]]
        made = Made(pairs, rows["features"], rows["left_out"], rows["unreadable"])
    except (OSError, ValueError, TypeError, KeyError, ValidationError):
        raise DataError(f"{path} is damaged; remove it and build again") from None
    for shard, n in Counter(pair.shard for pair in made.pairs).items():
        try:
            whole = len(open_shard(folder / shard)) == n
        except (OSError, ValueError):
            whole = False
        if not whole:
            raise DataError(f"{folder} has lost {shard}, or it is cut off; build again")
    return made


def remove_task(folder: Path, task: str) -> None:
    """Take a task out of the store: its rows first, so that none speaks of pixels that are gone."""
    (folder / TASKS / f"{task}.json").unlink(missing_ok=True)
    for shard in (folder / SHARDS).glob(f"{task}.*"):
        shard.unlink()


def damaged_pairs(folder: Path, pairs: Iterable[Pair]) -> list[str]:
    """The keys of the pairs whose stored pixels are not those that the manifest tells of."""
    return [pair.key for pair in pairs if _sha256(pair.images(folder)) != pair.sha256]


def _sha256(pixels: NDArray[np.int16]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype="<i2").tobytes()).hexdigest()


def _write_array(path: Path, pixels: NDArray[np.int16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(path) as file:
            np.save(file, pixels, allow_pickle=False)
    except OSError as error:
        raise DataError(
            f"cannot write {path.parent}: {error.strerror or 'the disk may be full'}; free some space and run again, it goes on"
        ) from None
