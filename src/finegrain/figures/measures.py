"""Measures of methods, drawn: Figure 1, the front of fidelity against texture, training curves, detectability, and Figure 2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from textwrap import fill, shorten
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finegrain.figures.images import CropView, difference_window
from finegrain.figures.style import (
    INK,
    INPUT,
    MUTED,
    PAPER,
    Kind,
    Look,
    Method,
    curves_of,
    method_looks,
    new_figure,
    styled,
)


class Detection(NamedTuple):
    """How well an observer finds a lesion: d′ with its 95 % interval, and `gain`, d′ less that in the input, with its own.

    `is_certain`: whether the gain differs from zero significantly, after Holm over all lesions and observers of the method.
    """

    lesion: str
    d_prime: float
    low: float
    high: float
    gain: tuple[float, float, float] | None = None
    is_certain: bool = False


PerPatient = Mapping[str, Mapping[str, Sequence[float]]]
"""Measure key → method → one value per patient."""

Marks = AbstractSet[tuple[str, str]]
"""(measure key, method) where the proposed method differs significantly from this one."""


@dataclass(frozen=True)
class StudyRow:
    """One measure over all arms.

    Attributes:
        key: of the measure, e.g. `hf_ratio[fine_texture]`.
        label: what a reader sees; a PSNR or SSIM carries its protocol.
        better: which way is better; "one" for a ratio that should be 1.
        values: arm → (mean, standard deviation, n patients); the input is the arm "low dose".
    """

    key: str
    label: str
    better: Literal["higher", "lower", "one", "zero", ""]
    values: Mapping[str, tuple[float, float, int]]


def pick_row(table: Sequence[StudyRow], name: str, *places: str) -> StudyRow | None:
    """The row of a measure at the first of these places that was measured, or anywhere; None if it was not measured."""
    rows = {row.key: row for row in table}
    anywhere = [key for key in rows if key == name or key.startswith(f"{name}[")]
    keys = [f"{name}[{place}]" for place in places if f"{name}[{place}]" in rows] + anywhere
    return rows[keys[0]] if keys else None


def figure_rows(table: Sequence[StudyRow]) -> list[StudyRow]:
    """The measures of Figure 1 that were made: PSNR, SSIM, high-frequency energy ratio and coherence."""
    rows = (
        pick_row(table, "psnr_db"),
        pick_row(table, "ssim"),
        pick_row(table, "hf_ratio", "fine_texture", "full"),
        pick_row(table, "hf_coherence", "fine_texture", "full"),
    )
    return [row for row in rows if row is not None]


def shown_in_bars(methods: Sequence[Method]) -> list[Method]:
    """Methods that get a bar: all but the input, from which bars start, and the members of a curve."""
    on_curves = {method.name for members in curves_of(methods).values() for method in members}
    return [method for method in methods if method.kind != "input" and method.name not in on_curves]


def methods_in(table: Sequence[StudyRow], *, arms: Sequence[str] = ()) -> list[Method]:
    """The methods of a table of which no kinds are known: "low dose" is the input, these arms are arms, all else is free.

    Without arms, all else is a candidate.
    """
    names = dict.fromkeys([*arms, *(name for row in table for name in row.values)])
    rest: Kind = "free" if arms else "candidate"
    kinds: dict[str, Kind] = {name: "input" if name == INPUT else "arm" if name in arms else rest for name in names}
    return sorted((Method(name, kind) for name, kind in kinds.items()), key=lambda method: method.kind != "input")


def bar_figure(
    table: Sequence[StudyRow],
    *,
    proposed: str = "",
    methods: Sequence[Method] = (),
    arms: Sequence[str] = (),
    per_patient: PerPatient | None = None,
    marks: Marks = frozenset(),
) -> Figure:
    """Figure 1: each measure of each method, mean ± SD, one dot per patient, in panels side by side.

    A bar starts at what it is compared with: the low-dose input, or 1 for the energy ratio. Cut-off axes cannot mislead then.

    Args:
        table: one row per measure; those of the figure are picked from it.
        proposed: the method drawn in blue.
        methods: in the order of display; by `methods_in` of the table and these arms if not given.
        arms: names of the networks, for a table without methods.
        per_patient: the dots.
        marks: where a star stands.
    """
    methods = methods or methods_in(table, arms=arms)
    rows, shown = figure_rows(table), shown_in_bars(methods)
    with styled():
        figure = new_figure(12.4, 1.5 + 0.42 * max(len(shown), 1))
        if not rows:
            return figure
        panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
        for axes, row in zip(panels, rows, strict=True):
            _bars(
                axes, row, shown, _input_of(methods), method_looks(methods, proposed), (per_patient or {}).get(row.key, {}), marks
            )
        panels[0].set_yticks(range(len(shown)), [method.name for method in shown])
        panels[0].invert_yaxis()
    return figure


def bar_panel(
    row: StudyRow,
    *,
    methods: Sequence[Method],
    proposed: str = "",
    dots: Mapping[str, Sequence[float]] | None = None,
    marks: Marks = frozenset(),
) -> Figure:
    """One panel of Figure 1, for a page: as narrow as a phone can show."""
    shown = shown_in_bars(methods)
    with styled():
        figure = new_figure(4.8, 1.25 + 0.4 * max(len(shown), 1))
        axes = figure.subplots()
        _bars(axes, row, shown, _input_of(methods), method_looks(methods, proposed), dots or {}, marks)
        axes.set_yticks(range(len(shown)), [broken(method.name, 28) for method in shown], multialignment="right")
        axes.invert_yaxis()
    return figure


def _input_of(methods: Sequence[Method]) -> str:
    return next((method.name for method in methods if method.kind == "input"), INPUT)


def _bars(
    axes: Axes,
    row: StudyRow,
    shown: Sequence[Method],
    start_name: str,
    looks: Mapping[str, Look],
    dots: Mapping[str, Sequence[float]],
    marks: Marks,
) -> None:
    start = 1.0 if row.better == "one" else row.values.get(start_name, (math.nan, 0.0, 0))[0]
    known_start = math.isfinite(start)
    start = start if known_start else 0.0
    for index, method in enumerate(shown):
        mean, sd, _ = row.values.get(method.name, (math.nan, 0.0, 0))
        if not math.isfinite(mean):
            axes.text(start, index, " n/a", color=MUTED, va="center")
            continue
        look = looks[method.name]
        axes.barh(index, mean - start, left=start, height=0.56, color=look.colour, alpha=0.55 if look.filled else 0.3, linewidth=0)
        axes.errorbar(mean, index, xerr=np.nan_to_num(sd), color=INK, capsize=3, linewidth=1.1)
        values = np.asarray(dots.get(method.name, ()), dtype=float)
        values = values[np.isfinite(values)]
        spread = np.linspace(-0.17, 0.17, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(values, index + spread, ".", color=INK, markersize=3.5, alpha=0.75)
        if (row.key, method.name) in marks:
            axes.annotate(
                "∗", (1, index), xycoords=("axes fraction", "data"), va="center", ha="left", fontsize=13, annotation_clip=False
            )
    axes.axvline(start, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_title(broken(row.label), fontsize=9.5)
    start_words = "1, the normal dose" if row.better == "one" else f"the low-dose input, {start:.3g}" if known_start else "0"
    axes.set_xlabel(f"bars start at {start_words}", fontsize=8)
    axes.use_sticky_edges = False
    axes.margins(x=0.08)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)


def broken(label: str, width: int = 30) -> str:
    """A label over two lines at most, broken at the comma or space nearest to a line's end; what is longer is cut."""
    if len(label) <= width:
        return label
    label = shorten(label, 2 * width, placeholder=" …")
    head, separator, tail = label.partition(", ")
    if separator and max(len(head), len(tail)) <= width:
        return f"{head},\n{tail}"
    cut = label.rfind(" ", 0, width)
    return f"{label[:cut]}\n{label[cut + 1 :]}" if cut > 0 else label[: 2 * width]


def front_figure(
    table: Sequence[StudyRow], *, against: Literal["hf_ratio", "hf_coherence"], methods: Sequence[Method], proposed: str = ""
) -> Figure:
    """PSNR against high-frequency energy ratio or coherence, mean ± SD, one point per method; curves of free competitors as lines.

    A curve begins at the method that its members start from. An input far from all else is named in a corner, not drawn.
    """
    psnr, other = pick_row(table, "psnr_db"), pick_row(table, against, "fine_texture", "full")
    with styled():
        figure = new_figure(4.8, 3.6)
        axes = figure.subplots()
        if psnr is None or other is None:
            return figure
        looks = method_looks(methods, proposed)
        points = {
            method.name: (other.values[method.name], psnr.values[method.name])
            for method in methods
            if method.name in psnr.values and method.name in other.values
        }
        points = {name: (x, y) for name, (x, y) in points.items() if math.isfinite(x[0]) and math.isfinite(y[0])}
        curves = curves_of(methods)
        on_curves = {member.name for members in curves.values() for member in members}
        for family, members in curves.items():
            _free_curve(axes, family, members, points, looks, is_labelled=against == "hf_ratio")
        for method in methods:
            if method.name not in points or method.kind == "input" or method.name in on_curves:
                continue
            (x, x_sd, _), (y, y_sd, _) = points[method.name]
            look = looks[method.name]
            x_error, y_error = float(np.nan_to_num(x_sd)), float(np.nan_to_num(y_sd))
            axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="none", ecolor=look.colour, elinewidth=0.8, alpha=0.4)
            axes.plot(x, y, look.marker, color=look.colour, markerfacecolor=look.face, markersize=8, label=method.name)
        axes.margins(0.1)
        if against == "hf_ratio":
            axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 2)))
            axes.text(1, 1.01, "the normal dose", transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
        start = _input_of(methods)
        if start in points:
            _input_or_note(axes, start, (points[start][0][0], points[start][1][0]))
        hint = "(← smoother · noisier →)" if against == "hf_ratio" else "(more of it is true →)"
        axes.set(xlabel=f"{other.label}\n{hint}", ylabel=broken(psnr.label))
        axes.grid(True)
    return figure


def _free_curve(
    axes: Axes,
    family: str,
    members: Sequence[Method],
    points: Mapping[str, tuple[tuple[float, float, int], tuple[float, float, int]]],
    looks: Mapping[str, Look],
    *,
    is_labelled: bool,
) -> None:
    present = [member for member in members if member.name in points]
    if not present:
        return
    look = looks[present[0].name]
    names = [name for name in (present[0].start,) if name in points] + [member.name for member in present]
    axes.plot(
        *zip(*((points[name][0][0], points[name][1][0]) for name in names), strict=True),
        color=look.colour,
        linestyle=look.line,
        linewidth=1,
        label=f"{family}, no training",
    )
    last = present[-1].name
    for member in present:
        place = (points[member.name][0][0], points[member.name][1][0])
        axes.plot(*place, color=look.colour, marker=look.marker, markersize=4, markerfacecolor="none")
        if is_labelled or member.name == last:
            share = member.name.rpartition(" ")[2]
            axes.annotate(share, place, xytext=(4, 4), textcoords="offset points", fontsize=7.5, color=MUTED)


def _input_or_note(axes: Axes, name: str, point: tuple[float, float]) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if left <= point[0] <= right and bottom <= point[1] <= top:
        axes.plot(*point, "X", color=MUTED, markersize=7, label=name)
        return
    paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    text = f"{name}, outside:\n{point[1]:.1f} dB at {point[0]:.2f}"
    axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=7.5, color=MUTED, va="bottom", bbox=paper)


def curve_figure(curves: Mapping[str, Sequence[tuple[int, float]]], *, looks: Mapping[str, Look]) -> Figure:
    """Validation error in HU against training step: network → [(step, rmse_hu), …]. The best step has the marker."""
    with styled():
        figure = new_figure(4.8, 3.2)
        axes = figure.subplots()
        for name, points in curves.items():
            if not points:
                continue
            look = looks.get(name, Look(MUTED, "."))
            steps, rmse_hu = (np.array([point[axis] for point in points], dtype=float) for axis in (0, 1))
            axes.plot(steps, rmse_hu, color=look.colour, linestyle=look.line, linewidth=1.3, label=name)
            best = int(np.nanargmin(rmse_hu)) if np.isfinite(rmse_hu).any() else 0
            axes.plot(steps[best], rmse_hu[best], color=look.colour, marker=look.marker, markersize=6)
        axes.set(xlabel="training step", ylabel="validation RMSE  [HU]")
        axes.grid(True, axis="y")
    return figure


def detectability_figure(detectability: Mapping[str, Sequence[Detection]], *, looks: Mapping[str, Look]) -> Figure:
    """d′ of each lesion under each method, with its 95 % interval; one group of methods per lesion."""
    lesions = list(dict.fromkeys(one.lesion for values in detectability.values() for one in values))
    with styled():
        figure = new_figure(4.8, 1.0 + 0.15 * (len(detectability) + 1.5) * max(len(lesions), 1))
        axes = figure.subplots()
        step = 0.8 / max(len(detectability), 1)
        for index, (name, values) in enumerate(detectability.items()):
            look = looks.get(name, Look(MUTED, "."))
            for lesion, d_prime, low, high, *_ in values:
                if not math.isfinite(d_prime):
                    continue
                place = lesions.index(lesion) - 0.4 + (index + 0.5) * step
                if math.isfinite(low) and math.isfinite(high):
                    axes.plot([low, high], [place, place], color=look.colour, linewidth=1.2)
                axes.plot(d_prime, place, color=look.colour, marker=look.marker or "|", markerfacecolor=look.face, markersize=5.5)
        axes.set_yticks(range(len(lesions)), [broken(lesion, 28) for lesion in lesions], multialignment="right")
        axes.invert_yaxis()
        axes.set(xlabel="detectability d′ (higher: easier to find)")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
    return figure


def crop_figure(crops: Sequence[CropView], *, most_columns: int = 8) -> Figure:
    """Figure 2: each place in the images of all methods, and under it the image minus the normal dose.

    More images than there are columns go on in further rows, which begin with the normal dose again.
    """
    parts = [(crop, names) for crop in crops for names in _in_columns(list(crop.images), most_columns)]
    columns = max((len(names) for _, names in parts), default=1)
    with styled():
        figure = new_figure(1.9 * columns + 0.5, max(1.0, 3.95 * len(parts)))
        if not parts:
            return figure
        grid = figure.subplots(2 * len(parts), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for index, (crop, names) in enumerate(parts):
            _crop_rows(grid[2 * index], grid[2 * index + 1], crop, names)
    return figure


def _in_columns(names: Sequence[str], most: int) -> Iterable[Sequence[str]]:
    """So many names at a time, the first with each."""
    for start in range(1, max(2, len(names)), most - 1):
        yield [*names[:1], *names[start : start + most - 1]]


def _crop_rows(above: Sequence[Axes], below: Sequence[Axes], crop: CropView, names: Sequence[str]) -> None:
    window, errors = crop.display_window(), crop.errors()
    error_window = difference_window(next(iter(errors.values()), np.zeros(1)))
    for axes, name in zip(above, names, strict=False):
        axes.imshow(window.to_gray(crop.images[name]), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        axes.set_title(fill(name, 24), fontsize=8.5)
    for axes, name in zip(below[1:], names[1:], strict=False):
        axes.imshow(error_window.to_gray(errors[name]), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
    text = f"{crop.name}\n\nwindow {window.centre:g}/{window.width:g} HU".replace("-", "−")
    text += f"\n\nright: image −\nnormal dose,\n±{error_window.width / 2:g} HU"
    below[0].text(0, 1, text, transform=below[0].transAxes, va="top", fontsize=8)
