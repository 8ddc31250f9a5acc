"""Output files: names that every system takes, and texts that are there whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path


def slug(name: str) -> str:
    """A name as a file name; empty if the name holds no letter a–z and no digit.

    >>> slug("hybrid, dual-domain loss")
    'hybrid-dual-domain-loss'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step: whoever reads it, even after a power cut, finds the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
