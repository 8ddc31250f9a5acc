"""Results → figures: greyscale images for eyes, places worth zooming into, and plots in one style.

Plots are `matplotlib.figure.Figure` objects made without pyplot, so that no state is shared. `svg_text` gives a figure for a
web page (its colours become CSS variables, so the page can be dark), `save_png` a file.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from finegrain.evaluate.regions import body_mask
from finegrain.hu import AIR_HU

REFERENCE, INPUT, OUTPUT = "normal dose", "low dose", "denoised"
"""What the three images are called wherever a reader sees them."""

INK, MUTED, RULE, PAPER = "#1a1d21", "#5b636d", "#cfd3d7", "#ffffff"
ORANGE, BLUE = "#d55e00", "#0072b2"
OTHERS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; every series also has a marker or a label of its own."""
MARKERS = ("s", "^", "D", "v", "P")
CSS_COLOURS = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper", ORANGE: "--orange", BLUE: "--blue"}

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


@dataclass(frozen=True)
class DisplayWindow:
    """What the eye is shown: HU from `centre − width/2` (black) to `centre + width/2` (white)."""

    name: str
    centre: float
    width: float

    def to_gray(self, hu: NDArray[np.floating]) -> NDArray[np.uint8]:
        """An image in HU as 8-bit grey, shape kept."""
        unit = (np.asarray(hu, dtype=np.float32) - (self.centre - self.width / 2)) / self.width
        return (np.nan_to_num(unit.clip(0, 1)) * 255).round().astype(np.uint8)


SOFT_WINDOW = DisplayWindow("soft tissue", 40, 400)
LUNG_WINDOW = DisplayWindow("lung", -600, 1500)
BONE_WINDOW = DisplayWindow("bone", 450, 1500)


def difference_window(noise_hu: NDArray[np.floating]) -> DisplayWindow:
    """A window centred at 0 HU, three standard deviations of the noise to each side, rounded to 10 HU."""
    half = max(10.0, round(3 * float(np.nanstd(noise_hu)) / 10) * 10)
    return DisplayWindow("difference", 0, 2 * half)


def png_bytes(gray: NDArray[np.uint8]) -> bytes:
    """An 8-bit grey image, shape (y, x), as a lossless PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_uri(gray: NDArray[np.uint8]) -> str:
    """An 8-bit grey image as a `data:` address, for a page that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(gray)).decode()


def resized(hu: NDArray[np.floating], factor: float) -> NDArray[np.float32]:
    """An image enlarged by bicubic interpolation, in HU and before any window. Shape: (y, x) → (factor y, factor x)."""
    rows, columns = (max(1, round(length * factor)) for length in hu.shape)
    image = Image.fromarray(np.asarray(hu, dtype=np.float32))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC), dtype=np.float32)


# --- where to look ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CropPlace:
    """A square of an image, in pixels, and the window that suits what it shows."""

    name: str
    row: int
    column: int
    side: int
    window: DisplayWindow
    score: float

    def of(self, image: NDArray) -> NDArray:
        """The pixels of the square. Shape: (y, x) → (side, side)."""
        return image[self.row : self.row + self.side, self.column : self.column + self.side]


@dataclass(frozen=True)
class _Tissue:
    name: str
    window: DisplayWindow
    hu: tuple[float, float]
    smooth_mm: float
    grain_mm: tuple[float, float]
    fraction: float


_TISSUES = (
    _Tissue("lung vessels", LUNG_WINDOW, (-980, -500), 5.0, (0.9, 4.0), 0.97),
    _Tissue("soft tissue", SOFT_WINDOW, (0, 250), 2.0, (2.0, 7.0), 0.95),
    _Tissue("bone", BONE_WINDOW, (220, 3000), 1.0, (0.9, 4.0), 0.15),
)
"""Name, window, HU of the smoothed tissue, smoothing, structure sizes that score, share of the square that must be tissue. Ours."""


def find_crops(reference_hu: NDArray[np.floating], *, pixel_mm: float, side: int = 64) -> list[CropPlace]:
    """The square with the most fine structure in lung, in soft tissue and in bone, found on the reference alone.

    Structure is the energy between two Gaussian scales, coarse enough to leave most noise out. A tissue that fills no
    square is left out of the list.

    Shape: reference_hu (y, x); side in pixels.
    """
    hu = np.clip(np.nan_to_num(np.asarray(reference_hu, dtype=np.float32), nan=AIR_HU), AIR_HU, 2000)
    side = min(side, min(hu.shape) // 2)
    body = body_mask(hu)
    found = (_best_square(hu, body, tissue, pixel_mm=pixel_mm, side=side) for tissue in _TISSUES)
    return [place for place in found if place is not None]


def _best_square(hu: NDArray, body: NDArray[np.bool_], tissue: _Tissue, *, pixel_mm: float, side: int) -> CropPlace | None:
    smooth = ndimage.gaussian_filter(hu, tissue.smooth_mm / pixel_mm)
    where = body & (smooth > tissue.hu[0]) & (smooth < tissue.hu[1])
    fine, coarse = (ndimage.gaussian_filter(hu, size / pixel_mm) for size in tissue.grain_mm)
    share = _square_means(where.astype(np.float32), side)
    score = np.where(share >= tissue.fraction, _square_means((fine - coarse) ** 2 * where, side), 0)
    row, column = np.unravel_index(int(score.argmax()), score.shape)
    if score[row, column] <= 0:
        return None
    return CropPlace(tissue.name, int(row), int(column), side, tissue.window, float(score[row, column]))


def _square_means(image: NDArray, side: int) -> NDArray[np.float64]:
    """Mean of each square, indexed by its first pixel. Shape: (y, x) → (y − side + 1, x − side + 1)."""
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    total[1:, 1:] = image.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return sums / side**2


def body_box(images_hu: Sequence[NDArray[np.floating]], *, margin: int = 12) -> tuple[slice, slice]:
    """Rows and columns that hold the body in every one of the images, with a margin in pixels; all if there is no body."""
    body = np.logical_or.reduce([body_mask(np.nan_to_num(np.asarray(hu), nan=AIR_HU)) for hu in images_hu])
    if not body.any():
        return slice(0, body.shape[0]), slice(0, body.shape[1])
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    return _widened(rows, margin, body.shape[0]), _widened(columns, margin, body.shape[1])


def _widened(indices: NDArray, margin: int, length: int) -> slice:
    return slice(max(0, int(indices[0]) - margin), min(length, int(indices[-1]) + 1 + margin))


# --- what a study shows ----------------------------------------------------------------------------------------------------


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
    better: Literal["higher", "lower", "one"]
    values: Mapping[str, tuple[float, float, int]]


@dataclass(frozen=True)
class CropView:
    """The same small place in the images of all methods.

    Attributes:
        name: what it shows.
        pixel_mm: pixel size in mm.
        images: name → HU array (y, x), in the order of display, "normal dose" first.
        window: display window (centre, width) in HU; lung or soft tissue by the median HU if None.
    """

    name: str
    pixel_mm: float
    images: Mapping[str, NDArray[np.floating]]
    window: tuple[float, float] | None = None

    def display_window(self) -> DisplayWindow:
        """The window that was asked for, or the one that suits the median HU."""
        if self.window is not None:
            return DisplayWindow("window", *self.window)
        reference = next(iter(self.images.values()))
        return LUNG_WINDOW if np.nanmedian(reference) < -300 else SOFT_WINDOW

    def errors(self) -> dict[str, NDArray[np.floating]]:
        """Each image but the reference, minus the reference, in HU."""
        names = list(self.images)
        return {name: self.images[name] - self.images[names[0]] for name in names[1:]}


def arm_looks(arms: Sequence[str], proposed: str) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm: grey for the input, blue for the proposed one, one of five for each other."""
    looks: dict[str, tuple[str, str]] = {}
    others = [arm for arm in arms if arm not in (INPUT, proposed)]
    for index, arm in enumerate(others):
        looks[arm] = (OTHERS[index % len(OTHERS)], MARKERS[index % len(MARKERS)])
    return looks | {INPUT: (MUTED, "X"), proposed: (BLUE, "o")}


def pick_row(table: Sequence[StudyRow], name: str, *places: str) -> StudyRow | None:
    """The row of a measure at the first of these places that was measured, or anywhere; None if it was not measured."""
    rows = {row.key: row for row in table}
    anywhere = [key for key in rows if key == name or key.startswith(f"{name}[")]
    keys = [f"{name}[{place}]" for place in places if f"{name}[{place}]" in rows] + anywhere
    return rows[keys[0]] if keys else None


# --- plots -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _styled() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def nps_figure(
    nps: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> Figure:
    """Radial noise power of each image: name → (frequency in cycles/mm, power in HU² mm²)."""
    with _styled():
        figure = _figure(6.0, 3.4)
        axes = figure.subplots()
        _nps_lines(axes, nps)
        axes.set(title="How much noise", ylabel="noise power  [HU² mm²]")
        axes.set_ylim(bottom=0)
    return figure


def nps_shape_figure(
    nps: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> Figure:
    """The same spectra, each divided by its area: what the noise looks like, whatever its strength."""
    with _styled():
        figure = _figure(6.0, 3.4)
        axes = figure.subplots()
        shapes = {name: (frequency, power / _area(frequency, power)) for name, (frequency, power) in nps.items()}
        _nps_lines(axes, shapes)
        axes.set(title="What it looks like", ylabel="share per cycle/mm  [mm]")
        axes.set_ylim(bottom=0)
    return figure


def _nps_lines(axes: Axes, nps: Mapping[str, tuple[NDArray, NDArray]]) -> None:
    looks = {REFERENCE: (INK, (0, (5, 2))), INPUT: (ORANGE, "-"), OUTPUT: (BLUE, "-")}
    for name, (frequency, power) in nps.items():
        colour, line = looks.get(name, (MUTED, ":"))
        axes.plot(frequency, power, color=colour, linestyle=line, label=name)
    axes.set_xlabel("spatial frequency  [cycles/mm]")
    axes.set_xlim(left=0)
    axes.grid(True, axis="y")
    if nps:
        axes.legend(loc="upper right", handlelength=2.4)


def _area(frequency: NDArray, power: NDArray) -> float:
    known = np.isfinite(power)
    area = float(np.trapezoid(np.asarray(power)[known], np.asarray(frequency)[known]))
    return area if area > 0 else float("nan")


def bar_figure(
    table: Sequence[StudyRow],
    *,
    per_patient: Mapping[str, Mapping[str, Sequence[float]]],
    proposed: str,
    arms: Sequence[str] = (),
) -> Figure:
    """Figure 1: PSNR, SSIM, high-frequency energy ratio and coherence of each arm: mean ± SD, one dot per patient.

    A bar starts at what it is compared with: the low-dose input, or 1 for the energy ratio. Cut-off axes cannot mislead then.

    Args:
        table: one row per measure; those of the figure are picked from it.
        per_patient: measure key → arm → one value per patient.
        proposed: the arm drawn in blue.
        arms: those to show; all but the input if empty.
    """
    rows = [
        pick_row(table, "psnr_db"),
        pick_row(table, "ssim"),
        pick_row(table, "hf_ratio", "fine_texture", "full"),
        pick_row(table, "hf_coherence", "fine_texture", "full"),
    ]
    present = [row for row in rows if row is not None]
    known = present[0].values if present else {}
    shown = [arm for arm in known if arm != INPUT and (arm in arms or not arms)]
    with _styled():
        figure = _figure(12.4, 1.5 + 0.42 * max(len(shown), 1))
        if not present:
            return figure
        panels = figure.subplots(1, len(present), sharey=True, squeeze=False)[0]
        for axes, row in zip(panels, present, strict=True):
            _bars(axes, row, shown, dots=per_patient.get(row.key, {}), looks=arm_looks(shown, proposed))
        panels[0].set_yticks(range(len(shown)), shown)
        panels[0].invert_yaxis()
    return figure


def _bars(
    axes: Axes,
    row: StudyRow,
    arms: Sequence[str],
    *,
    dots: Mapping[str, Sequence[float]],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    start = 1.0 if row.better == "one" else row.values.get(INPUT, (0.0, 0.0, 0))[0]
    start = start if np.isfinite(start) else 0.0
    for index, arm in enumerate(arms):
        mean, sd, _ = row.values.get(arm, (float("nan"), 0.0, 0))
        if not np.isfinite(mean):
            axes.text(start, index, " n/a", color=MUTED, va="center")
            continue
        axes.barh(index, mean - start, left=start, height=0.56, color=looks[arm][0], alpha=0.55, linewidth=0)
        axes.errorbar(mean, index, xerr=np.nan_to_num(sd), color=INK, capsize=3, linewidth=1.1)
        values = np.asarray(dots.get(arm, ()), dtype=float)
        spread = np.linspace(-0.17, 0.17, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(values, index + spread, ".", color=INK, markersize=3.5, alpha=0.75)
    axes.axvline(start, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_title(_broken(row.label), fontsize=9.5)
    start_words = "1, the normal dose" if row.better == "one" else f"the low-dose input, {start:.3g}"
    axes.set_xlabel(f"bars start at {start_words}", fontsize=8)
    axes.use_sticky_edges = False
    axes.margins(x=0.08)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)


def _broken(label: str, width: int = 30) -> str:
    """A label over two lines, broken at the comma or space nearest to a line's end."""
    if len(label) <= width:
        return label
    head, separator, tail = label.partition(", ")
    if not separator:
        cut = label.rfind(" ", 0, width)
        head, tail = (label[:cut], label[cut + 1 :]) if cut > 0 else (label, "")
    return f"{head}\n{tail}"


def front_figure(table: Sequence[StudyRow], *, proposed: str, arms: Sequence[str] = ()) -> Figure:
    """PSNR against high-frequency energy ratio, one point per arm, its coherence in the legend. The goal is up, at 1.

    What the table holds beside the arms and the input is a free competitor, such as "blend 0.2": drawn in grey, joined by a
    line with those that share its first word. An input far from the networks is named in the legend, not drawn.
    """
    psnr, ratio = pick_row(table, "psnr_db"), pick_row(table, "hf_ratio", "fine_texture", "full")
    coherence = pick_row(table, "hf_coherence", "fine_texture", "full")
    with _styled():
        figure = _figure(8.6, 3.9)
        axes = figure.subplots()
        if psnr is None or ratio is None:
            return figure
        points = {arm: (ratio.values[arm][0], psnr.values[arm][0]) for arm in psnr.values if arm in ratio.values}
        shown = [arm for arm in points if arm != INPUT and (arm in arms or not arms)]
        looks = arm_looks(shown, proposed)
        for arm in shown:
            known = coherence.values.get(arm, (float("nan"),))[0] if coherence else float("nan")
            axes.errorbar(
                *points[arm],
                xerr=np.nan_to_num(ratio.values[arm][1]),
                yerr=np.nan_to_num(psnr.values[arm][1]),
                color=looks[arm][0],
                marker=looks[arm][1],
                markersize=8,
                elinewidth=0.8,
                linestyle="none",
                label=f"{arm}:  {known:.3f}" if np.isfinite(known) else f"{arm}:  n/a",
            )
        _free_competitors(axes, {arm: point for arm, point in points.items() if arm not in shown and arm != INPUT})
        axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.text(1, 1.01, "the normal dose", transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
        axes.margins(0.1)
        if INPUT in points and np.isfinite(points[INPUT]).all():
            _input_or_note(axes, points[INPUT])
        axes.set(xlabel=f"{ratio.label} (← smoother · noisier →)", ylabel=psnr.label)
        axes.grid(True)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: not labels[index].startswith(tuple(f"{arm}:" for arm in shown)))
        axes.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            title="arm, and its coherence",
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            alignment="left",
        )
    return figure


def _free_competitors(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    families = dict.fromkeys(name.split()[0] for name in points)
    for family, (line, marker) in zip(families, itertools.cycle((("-", "o"), ((0, (4, 2)), "s"), (":", "D"))), strict=False):
        members = [name for name in points if name.split()[0] == family]
        x, y = zip(*(points[name] for name in members), strict=True)
        axes.plot(
            x,
            y,
            color=MUTED,
            linestyle=line,
            marker=marker,
            markersize=3.5,
            markerfacecolor="none",
            linewidth=1,
            label=f"{family}, no training",
        )
        for name in members:
            axes.annotate(
                name.partition(" ")[2], points[name], xytext=(4, 4), textcoords="offset points", fontsize=7.5, color=MUTED
            )


def _input_or_note(axes: Axes, point: tuple[float, float]) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if left <= point[0] <= right and bottom <= point[1] <= top:
        axes.plot(*point, "X", color=MUTED, markersize=7, label=INPUT)
        return
    label = f"{INPUT}, outside: {point[1]:.1f} dB at {point[0]:.2f}"
    axes.plot([], [], "X", color=MUTED, markersize=7, label=label)


def curve_figure(curves: Mapping[str, Sequence[tuple[int, float]]], *, proposed: str) -> Figure:
    """Validation error in HU against training step, per arm: arm → [(step, rmse_hu), …]."""
    with _styled():
        figure = _figure(8.2, 3.4)
        axes = figure.subplots()
        looks = arm_looks(list(curves), proposed)
        for arm, points in curves.items():
            steps, rmse_hu = (np.array([point[axis] for point in points], dtype=float) for axis in (0, 1))
            axes.plot(steps, rmse_hu, color=looks[arm][0], marker=looks[arm][1], markersize=4.5, linewidth=1.4, label=arm)
        axes.set(xlabel="training step", ylabel="validation RMSE  [HU]")
        axes.grid(True, axis="y")
        if curves:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def crop_figure(crops: Sequence[CropView]) -> Figure:
    """Figure 2: each place in the images of all methods, and under it the image minus the normal dose."""
    columns = max((len(crop.images) for crop in crops), default=1)
    with _styled():
        figure = _figure(1.9 * columns + 0.5, max(1.0, 3.95 * len(crops)))
        if not crops:
            return figure
        grid = figure.subplots(2 * len(crops), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for index, crop in enumerate(crops):
            _crop_rows(grid[2 * index], grid[2 * index + 1], crop)
    return figure


def _crop_rows(above: Sequence[Axes], below: Sequence[Axes], crop: CropView) -> None:
    window, errors = crop.display_window(), crop.errors()
    error_window = difference_window(next(iter(errors.values()), np.zeros(1)))
    for axes, (name, hu) in zip(above, crop.images.items(), strict=False):
        axes.imshow(window.to_gray(hu), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        axes.set_title(_broken(name, 22), fontsize=8.5)
    for axes, error in zip(below[1:], errors.values(), strict=False):
        axes.imshow(error_window.to_gray(error), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
    text = f"{crop.name}\n\nwindow {window.centre:g}/{window.width:g} HU".replace("-", "−")
    text += f"\n\nright: image −\nnormal dose,\n±{error_window.width / 2:g} HU"
    below[0].text(0, 1, text, transform=below[0].transAxes, va="top", fontsize=8)


def kernel_figure(
    name: str,
    measured: tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]],
    *,
    nps: tuple[NDArray[np.floating], NDArray[np.floating]],
    known: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> Figure:
    """A measured reconstruction kernel with its error band among known ones, and the noise that it was measured from.

    Args:
        name: of the kernel.
        measured: frequency in cycles/mm, W, and its standard error, NaN where W is extrapolated.
        nps: frequency and noise power in HU² mm².
        known: other kernels, name → (frequency, W).
    """
    frequency, transfer, error = (np.asarray(values) for values in measured)
    true = np.isfinite(error)
    end = int(np.flatnonzero(true)[-1])
    with _styled():
        figure = _figure(11.5, 3.8)
        left, right = figure.subplots(1, 2)
        for (other, (at, value)), colour, dashes in zip(known.items(), OTHERS, itertools.cycle(((5, 2), (1, 1.5), (6, 2, 1, 2)))):
            left.plot(at, value, color=colour, linestyle=(0, dashes), linewidth=1.1, label=other)
        low, high = (transfer - 2 * error)[true], (transfer + 2 * error)[true]
        left.fill_between(frequency[true], low, high, color=BLUE, alpha=0.2, linewidth=0)
        points = slice(1, end + 1)
        left.plot(
            frequency[points], transfer[points], color=BLUE, marker="o", markersize=3, label=f"{name} measured, ± 2 standard errors"
        )
        left.plot(frequency[:2], transfer[:2], color=BLUE, linestyle=":")
        left.plot(frequency[end:], transfer[end:], color=BLUE, linestyle=":", label="extrapolated")
        left.set(title="Kernel W(f) on the ramp", xlabel="spatial frequency  [cycles/mm]", xlim=(0, max(1.0, frequency[-1])))
        left.set_ylim(0, max(1.1, 1.05 * float(high.max())))
        left.grid(True, axis="y")
        left.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.4, fontsize=8)
        right.plot(*nps, color=BLUE)
        right.set(title="Noise that it was measured from", ylabel="noise power  [HU² mm²]")
        right.set(xlabel="spatial frequency  [cycles/mm]", xlim=(0, None), ylim=(0, None))
        right.grid(True, axis="y")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file at 200 dpi."""
    with _styled():
        figure.savefig(path, format="png", dpi=PNG_DPI, metadata={"Software": None})


def svg_text(figure: Figure, name: str) -> str:
    """A figure as `<svg>` for a page: text stays text, the page's CSS variables colour it. Equal figures give equal text.

    Args:
        name: unlike every other figure's on the page; identifiers inside the drawing are derived from it.
    """
    buffer = io.StringIO()
    with _styled(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'(, sans-serif)?", "var(--sans)", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(f": {colour}", f": var({variable}, {colour})")
    return svg
