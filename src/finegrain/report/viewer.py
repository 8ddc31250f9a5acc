"""Crops as data: HU for the page's own viewer, and pictures for a page without scripts and for paper."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.figures import CropView, difference_window, png_uri, resized
from finegrain.report.page import window_words
from finegrain.report.words import minus

FALLBACK_FACTOR = 2
"""Pictures are enlarged so often: browsers and paper do the rest, and every pixel of noise costs a byte."""
MOST_BYTES = 5_500_000
"""Crops beyond this are left out of a page, which should stay below 8 MB; a default, taken from nowhere."""


def places_of(crops: Sequence[CropView], *, labels: Sequence[str] = (), most_bytes: int = MOST_BYTES) -> list[dict[str, Any]]:
    """Each crop as the template's viewer wants it, in order, until the page would become too heavy.

    Args:
        crops: those to show; one without images is passed over.
        labels: of the tabs; the crops' names if not given.
        most_bytes: of all that is returned.
    """
    places: list[dict[str, Any]] = []
    size = 0
    for crop, label in zip(crops, labels or [crop.name for crop in crops], strict=True):
        if not crop.images:
            continue
        place = _place(crop, label)
        size += sum(len(tile["hu"]) + len(tile["src"]) + len(tile["error"]) for tile in place["tiles"])
        if size > most_bytes:
            break
        places.append(place)
    return places


def _place(crop: CropView, label: str) -> dict[str, Any]:
    window, errors = crop.display_window(), crop.errors()
    error_window = difference_window(next(iter(errors.values()), np.zeros(1)))
    rows, columns = next(iter(crop.images.values())).shape
    tiles = [
        {
            "label": name,
            "src": png_uri(window.to_gray(resized(np.nan_to_num(hu), FALLBACK_FACTOR))),
            "error": png_uri(error_window.to_gray(resized(np.nan_to_num(errors[name]), FALLBACK_FACTOR))) if name in errors else "",
            "hu": hu_data(hu),
        }
        for name, hu in crop.images.items()
    ]
    return {
        "label": label,
        "name": crop.name,
        "tiles": tiles,
        "rows": rows,
        "columns": columns,
        "side_mm": f"{columns * crop.pixel_mm:.0f}",
        "centre": window.centre,
        "width": window.width,
        "error": error_window.width,
        "window": window_words(window),
        "error_hu": minus(f"{error_window.width / 2:g}"),
        "bar_percent": 100 * 10 / (columns * crop.pixel_mm),
    }


def hu_data(hu: NDArray[np.floating]) -> str:
    """An image as base64 of little-endian 16-bit HU, rows after one another; what is no number becomes −1024."""
    values = np.nan_to_num(np.asarray(hu, dtype=np.float64), nan=-1024).round().clip(-32768, 32767)
    return base64.b64encode(values.astype("<i2").tobytes()).decode()
