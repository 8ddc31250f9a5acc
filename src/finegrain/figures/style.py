"""One style for every plot: Okabe and Ito's colours, which colour-blind readers can tell apart, and a page's own in the dark.

Plots are `matplotlib.figure.Figure` objects made without pyplot, so that no state is shared. `svg_text` gives a figure for a
web page (its colours become CSS variables, so the page can be dark), `save_png` a file.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

REFERENCE, INPUT, OUTPUT = "normal dose", "low dose", "denoised"
"""What the three images are called wherever a reader sees them."""

INK, MUTED, RULE, PAPER = "#1a1d21", "#5b636d", "#cfd3d7", "#ffffff"
ORANGE, BLUE = "#d55e00", "#0072b2"
OTHERS = (ORANGE, "#009e73", "#cc79a7", "#6b4a12", "#2996d0")
"""Okabe and Ito's, with brown for their yellow and a darker sky blue, for those vanish on white. Any two colours of a page differ
by 6 or more (CIEDE2000) in the eyes of the colour-blind, in light and dark; every series also has a marker or a label."""
MARKERS = ("s", "^", "D", "v", "P")
DASHES = ((0, (6, 2)), (0, (2, 1.2)), (0, (6, 2, 1.5, 2)), (0, (9, 2, 1.5, 2, 1.5, 2)), (0, (1, 1)))
CSS_COLOURS = {
    INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper", BLUE: "--blue",
    ORANGE: "--orange", OTHERS[1]: "--green", OTHERS[2]: "--pink", OTHERS[3]: "--brown", OTHERS[4]: "--sky",
}  # fmt: skip

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}

PNG_DPI = 200

Kind = Literal["input", "arm", "candidate", "free"]
"""What a method is: the low-dose input; a network of the study; somebody's denoised images; a free competitor (blend, equaliser,
a classical filter)."""


@dataclass(frozen=True)
class Method:
    """One method of a page or figure; it has one colour everywhere.

    Attributes:
        name: what a reader sees; unlike every other's.
        kind: what it is.
        start: of a free competitor: the method that it starts from, where its curve begins. Those of one curve share
            their names but for a number at the end ("blend 0.1", "blend 0.2").
    """

    name: str
    kind: Kind
    start: str = ""

    @property
    def family(self) -> str:
        """What stands before the number at the end of a name, "blend" of "blend 0.2"; the whole name if it ends in none."""
        return re.sub(r" [\d.]+$", "", self.name)


@dataclass(frozen=True)
class Look:
    """How a method is drawn: colour, marker, line, and whether its marker is filled."""

    colour: str
    marker: str
    line: Any = "-"
    filled: bool = True

    @property
    def face(self) -> str:
        """The colour inside its marker."""
        return self.colour if self.filled else "none"


REFERENCE_LOOK = Look(INK, "", (0, (5, 2)))
INPUT_LOOK = Look(MUTED, "X", (0, (1, 1.5)))
PROPOSED_LOOK = Look(BLUE, "o")
FREE_MARKERS = ("o", "s", "D", "^")


def curves_of(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """Free competitors that form a curve, two or more of one family: family → members."""
    families: dict[str, list[Method]] = {}
    for method in methods:
        if method.kind == "free":
            families.setdefault(method.family, []).append(method)
    return {family: members for family, members in families.items() if len(members) > 1}


def method_looks(methods: Sequence[Method], proposed: str = "") -> dict[str, Look]:
    """The look of each method: grey for the input and for curves of free competitors, blue for the proposed one.

    Without a proposed method the first network or candidate is blue.
    """
    curves = curves_of(methods)
    coloured = [
        method
        for method in methods
        if (method.kind != "input" and method.family not in curves) or method.kind in ("arm", "candidate")
    ]
    blue = proposed or next((method.name for method in coloured if method.kind != "free"), "")
    others = [method for method in coloured if method.name != blue]
    looks = {REFERENCE: REFERENCE_LOOK} | {method.name: INPUT_LOOK for method in methods if method.kind == "input"}
    for index, method in enumerate(others):
        marker = MARKERS[(index + index // 5) % 5]
        looks[method.name] = Look(OTHERS[index % 5], marker, DASHES[index % 5], method.kind != "free")
    for marker, members in zip(itertools.cycle(FREE_MARKERS), curves.values(), strict=False):
        looks |= {member.name: Look(MUTED, marker, "-", filled=False) for member in members}
    return looks | ({blue: PROPOSED_LOOK} if blue else {})


@contextmanager
def styled() -> Iterator[None]:
    """The style, while a figure is made or written."""
    with mpl.rc_context(STYLE):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure that belongs to no window."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file at 200 dpi."""
    with styled():
        figure.savefig(path, format="png", dpi=PNG_DPI, metadata={"Software": None})


def svg_text(figure: Figure, name: str) -> str:
    """A figure as `<svg>` for a page: text stays text, the page's CSS variables colour it. Equal figures give equal text.

    Args:
        name: unlike every other figure's on the page; identifiers inside the drawing are derived from it.
    """
    buffer = io.StringIO()
    with styled(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'(, sans-serif)?", "var(--sans)", svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(f": {colour}", f": var({variable}, {colour})")
    return svg
