"""Output files: names that every system takes, values that JSON takes, texts that are there whole or not at all."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step: whoever reads it, even after a power cut, finds the old text or the new one.

    Raises: DataError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror or 'the disk may be full'}; check the folder and the disk") from None
