"""Some of many, evenly spread: which slices or pairs are looked at where all would take too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items in their order, first and last among them; the same each time, none twice, none of none."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[k] for k in places]
