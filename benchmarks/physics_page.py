"""How the physics page is made of its parts: checks against a requirement, tables, figures, sections, Markdown.

Every number on the page is a value that a section measured or the constant that it was compared with; no text holds a figure of
its own.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from finegrain.figures import BLUE, INK, MUTED, ORANGE, OTHERS, RULE, STYLE, DisplayWindow

LARGEST_FIGURE_BYTES = 120_000
COLOURS = (BLUE, ORANGE, OTHERS[1], OTHERS[2], INK, OTHERS[0])


@dataclass(frozen=True)
class Check:
    """A measured value and the interval that it is required to lie in."""

    what: str
    measured: float
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    form: str = ".3f"

    @property
    def met(self) -> bool:
        """Whether the requirement holds; NaN never does."""
        return self.low <= self.measured <= self.high

    @property
    def required(self) -> str:
        """The interval in words."""
        # A tolerance finer than four digits needs more of them.
        form = ".4g" if f"{self.low:.4g}" != f"{self.high:.4g}" else ".7g"
        low, high = (number(bound, form) for bound in (self.low, self.high))
        if math.isinf(self.low):
            text = f"≤ {high}"
        elif math.isinf(self.high):
            text = f"≥ {low}"
        else:
            text = f"{low} to {high}"
        return f"{text} {self.unit}".strip()


def about(what: str, measured: float, target: float, tolerance: float, *, unit: str = "", form: str = ".3f") -> Check:
    """A check that a value lies within a tolerance of its target."""
    return Check(what, measured, target - tolerance, target + tolerance, unit, form)


def at_most(what: str, measured: float, high: float, *, unit: str = "", form: str = ".3f") -> Check:
    """A check against an upper bound."""
    return Check(what, measured, high=high, unit=unit, form=form)


def at_least(what: str, measured: float, low: float, *, unit: str = "", form: str = ".3f") -> Check:
    """A check against a lower bound."""
    return Check(what, measured, low=low, unit=unit, form=form)


@dataclass(frozen=True)
class Table:
    """Values without a requirement of their own."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure, the end of its file name and what it shows."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """One claim, what bears it out, and where it comes from."""

    title: str
    claim: str
    source: str
    checks: Sequence[Check] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def number(value: float, form: str = ".3f") -> str:
    """A number with a true minus sign; a value that rounds to zero has none."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = format(value, form)
    if text.lstrip("-").strip("0.") == "":
        text = text.lstrip("-")
    return text.replace("-", "−")


def power_of_ten(value: float) -> str:
    """A round number as 5·10⁵."""
    exponent = math.floor(math.log10(value))
    raised = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    factor = value / 10**exponent
    return f"10{raised}" if math.isclose(factor, 1) else f"{factor:g}·10{raised}"


def markdown(sections: Iterable[Section], *, command: str, version: str, images: str) -> str:
    """The whole page. `images` is the folder of the figures as seen from the page."""
    sections = list(sections)
    parts = [_head(sections, command=command, version=version)]
    parts += [_section(index, section, images) for index, section in enumerate(sections, 1)]
    return "\n\n".join(parts) + "\n"


def _head(sections: Sequence[Section], *, command: str, version: str) -> str:
    checks = [(index, check) for index, section in enumerate(sections, 1) for check in section.checks]
    missed = [f"section {index}, {check.what}" for index, check in checks if not check.met]
    verdict = f"{len(checks) - len(missed)} of {len(checks)} requirements are met."
    if missed:
        verdict += f" Not met: {'; '.join(missed)}."
    return "\n".join(
        [
            "# The physics of the simulator, measured",
            "",
            f"Made by `{command}` with finegrain {version}.",
            "Do not edit, run it again. Every number is measured in that run, with fixed seeds, or is the requirement that it",
            "is held to. A phantom's line integrals are exact (analytic), so that no reconstruction is flattered by having been",
            "projected on its own grid; only where the projector itself is the subject are pixels projected.",
            "",
            f"**{verdict}**",
        ]
    )


def _section(index: int, section: Section, images: str) -> str:
    lines = [f"## {index}. {section.title}", "", section.claim]
    if section.checks:
        rows = [
            (
                check.what,
                check.required,
                f"{number(check.measured, check.form)} {check.unit}".strip(),
                "yes" if check.met else "**no**",
            )
            for check in section.checks
        ]
        lines += ["", _table(("quantity", "required", "measured", "met"), rows)]
    for table in section.tables:
        lines += ["", *([table.title, ""] if table.title else []), _table(table.header, table.rows)]
    for plot in section.plots:
        lines += ["", f"![{plot.caption}]({images}/physics-{plot.name}.png)", "", f"*{plot.caption}*"]
    for note in section.notes:
        lines += ["", note]
    return "\n".join([*lines, "", f"Source: {section.source}"])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(0x2223)) for cell in line)} |" for line in lines)


# --- figures ---------------------------------------------------------------------------------------------------------------


def styled() -> AbstractContextManager[None]:
    """The house style, for as long as figures are made."""
    return mpl.rc_context(STYLE)


def new_figure(width_in: float, height_in: float, *, columns: int = 1, rows: int = 1, **more: Any) -> tuple[Figure, Any]:
    """A figure and its axes: alone if there is one panel, else as an array. Call it within `styled`."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **more)
    for one in np.atleast_1d(axes).flat:
        one.grid(True, color=RULE, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def show(axes: Axes, hu: NDArray[np.floating], window: DisplayWindow, title: str) -> None:
    """An image in a display window, without ticks."""
    axes.grid(False)
    axes.imshow(window.to_gray(hu), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, fontweight="normal", color=INK)


def reference_line(axes: Axes, value: float, *, vertical: bool = False) -> None:
    """A thin dashed line at a value that is expected."""
    (axes.axvline if vertical else axes.axhline)(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))


def plain_log_ticks(axes: Axes, *, x: Sequence[float] = (), y: Sequence[float] = ()) -> None:
    """Ticks of logarithmic axes as plain numbers: the style does not parse mathematics."""
    for axis, ticks in ((axes.xaxis, x), (axes.yaxis, y)):
        if len(ticks):
            axis.set_ticks(list(ticks), [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)


def save(plot: Plot, folder: Path) -> int:
    """Write a figure as a palette PNG of at most `LARGEST_FIGURE_BYTES`; grey noise compresses badly. Its size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    data = b""
    for dpi in (150, 130, 115, 100, 88, 76):
        data = _png(plot.figure, dpi)
        if len(data) <= LARGEST_FIGURE_BYTES:
            break
    (folder / f"physics-{plot.name}.png").write_bytes(data)
    return len(data)


def _png(figure: Figure, dpi: int) -> bytes:
    drawn, packed = io.BytesIO(), io.BytesIO()
    with styled():
        figure.savefig(drawn, format="png", dpi=dpi, metadata={"Software": None})
    pixels = np.asarray(Image.open(drawn).convert("RGB"))
    palette = _palette()
    colours, which = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    nearest = cKDTree(palette).query(colours)[1].astype(np.uint8)
    image = Image.fromarray(nearest[which.reshape(pixels.shape[:2])], mode="P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(packed, format="PNG", optimize=True)
    return packed.getvalue()


@cache
def _palette() -> NDArray[np.float64]:
    """48 greys, and eight steps from each colour to the paper for smooth edges: few enough that grey noise packs well."""
    greys = np.repeat(np.linspace(0, 255, 48).round()[:, None], 3, axis=1)
    hues = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (*COLOURS, MUTED, RULE)])
    steps = np.linspace(0, 0.9, 8)[:, None, None]
    return np.concatenate([greys, (hues * (1 - steps) + 255 * steps).reshape(-1, 3)]).round()
