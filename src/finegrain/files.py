"""Output files: names that every system takes, values that JSON takes, texts that are there whole or not at all."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from finegrain.errors import DataError


def slug(name: str) -> str:
    """A name as a file name; empty if the name holds no letter a–z and no digit.

    >>> slug("hybrid, dual-domain loss")
    'hybrid-dual-domain-loss'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def json_safe(value: Any) -> Any:
    """The same data, however nested, with None for what JSON cannot hold: NaN and the infinities.

    >>> json_safe({"p": [0.5, float("nan")]})
    {'p': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name in one step at the end: whoever reads it, even after a power cut or on a full disk,
    finds the old one or the new one.

    Raises: OSError if it cannot be written; then nothing of it is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # half a file would keep a full disk full
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step: whoever reads it, even after a power cut, finds the old text or the new one.

    Raises: DataError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or 'the disk may be full'}; check the folder and the disk") from None
