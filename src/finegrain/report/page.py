"""One template and its values → one HTML file that loads nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from finegrain.figures import DisplayWindow, png_uri
from finegrain.files import write_whole
from finegrain.report.words import minus, number, p_value, percent, scaled, seconds


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("finegrain"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent, "p_value": p_value, "seconds": seconds, "scaled": scaled}
    return environment


def write_page(path: Path, template: str, **values: Any) -> None:
    html = _environment().get_template(template).render(**values)
    write_whole(path, html)


def tile(gray: NDArray[np.uint8], label: str, note: str = "") -> dict[str, Any]:
    return {"src": png_uri(gray), "label": label, "note": note, "rows": gray.shape[0], "columns": gray.shape[1]}


def window_words(window: DisplayWindow) -> str:
    return f"window {minus(f'{window.centre:g}')}/{window.width:g} HU"
