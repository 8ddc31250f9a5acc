"""Series that can be read, and what was left out in words that may be stored."""

from __future__ import annotations

import re
from pathlib import Path

from finegrain.scan.series import ScanSeries, find_series

_UID = re.compile(r",? \(?\d+(?:\.\d+){3,}\)?")


def find_usable_series(path: Path) -> tuple[list[ScanSeries], list[str]]:
    """`find_series` without images that went through lossy compression; its lines without UIDs, for they end up in manifests."""
    found, lines = find_series(path)
    usable = [series for series in found if not series.lossy]
    if len(usable) < len(found):
        lines = [*lines, f"{len(found) - len(usable)} series left out that went through lossy compression: their noise is lost"]
    return usable, [without_uids(line) for line in lines]


def without_uids(line: str) -> str:
    """A message of the readers as it may be stored."""
    return _UID.sub("", line)
