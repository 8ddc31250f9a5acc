"""Curves over spatial frequency: noise power, energy ratio and coherence per band, reconstruction kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finegrain.figures.style import (
    BLUE,
    DASHES,
    INK,
    INPUT,
    MUTED,
    ORANGE,
    OTHERS,
    OUTPUT,
    REFERENCE,
    Look,
    new_figure,
    styled,
)

Spectrum = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Frequency in cycles/mm and radial noise power in HU² mm², one shape."""

BandValue = tuple[float, float, float, float, float | None]
"""Low and high edge in cycles/mm, energy ratio to the reference, coherence with it, coherence with the noise-free image (None if
there is none)."""

DEMO_LOOKS = {REFERENCE: Look(INK, "", (0, (5, 2))), INPUT: Look(ORANGE, ""), OUTPUT: Look(BLUE, "")}

FEW_SPECTRA = 3
"""So many lie apart on a linear scale, and their names fit beside them; a default, taken from nowhere."""
LOWEST_SHARE = 1e-3
"""Where a logarithmic scale of noise power begins, of its highest value; a default, taken from nowhere."""


def nps_figure(nps: Mapping[str, Spectrum], *, looks: Mapping[str, Look] = DEMO_LOOKS) -> Figure:
    """Radial noise power of each image, by name; on a logarithmic scale if there are more than three."""
    with styled():
        figure = new_figure(4.8, 3.2)
        axes = figure.subplots()
        _nps_lines(axes, nps, looks)
        axes.set(title="How much noise", ylabel="noise power  [HU² mm²]")
        highest = max((float(np.nanmax(power)) for _, power in nps.values()), default=0.0)
        if len(nps) > FEW_SPECTRA and highest > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda *_: "")
            axes.set_ylim(LOWEST_SHARE * highest, 1.5 * highest)
        else:
            axes.set_ylim(bottom=0)
    return figure


def nps_shape_figure(nps: Mapping[str, Spectrum], *, looks: Mapping[str, Look] = DEMO_LOOKS) -> Figure:
    """The same spectra, each divided by its area: what the noise looks like, whatever its strength."""
    with styled():
        figure = new_figure(4.8, 3.2)
        axes = figure.subplots()
        shapes = {name: (frequency, power / _area(frequency, power)) for name, (frequency, power) in nps.items()}
        _nps_lines(axes, shapes, looks)
        axes.set(title="What it looks like", ylabel="share per cycle/mm  [mm]")
        axes.set_ylim(bottom=0)
    return figure


def _nps_lines(axes: Axes, nps: Mapping[str, Spectrum], looks: Mapping[str, Look]) -> None:
    for name, (frequency, power) in nps.items():
        look = looks.get(name, Look(MUTED, "", ":"))
        axes.plot(frequency, power, color=look.colour, linestyle=look.line, label=name)
    axes.set_xlabel("spatial frequency  [cycles/mm]")
    axes.set_xlim(left=0)
    axes.grid(True, axis="y")
    if 0 < len(nps) <= FEW_SPECTRA:
        axes.legend(loc="best", handlelength=2.4).set_in_layout(False)  # a long name must not squeeze the plot


def _area(frequency: NDArray, power: NDArray) -> float:
    known = np.isfinite(power)
    area = float(np.trapezoid(np.asarray(power)[known], np.asarray(frequency)[known]))
    return area if area > 0 else float("nan")


def band_ratio_figure(bands: Mapping[str, Sequence[BandValue]], *, looks: Mapping[str, Look]) -> Figure:
    """Energy of each frequency band against the reference's, on a logarithmic scale: 1 is as much as the reference."""
    with styled():
        figure = new_figure(4.8, 3.2)
        axes = figure.subplots()
        for name, values in bands.items():
            look = looks.get(name, Look(MUTED, "."))
            _band_line(axes, values, [value[2] for value in values], look, "-", label=name)
        axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.set(title="Energy in each band", ylabel="ratio to the normal dose")
        _band_axis(axes, bands)
    return figure


def band_coherence_figure(bands: Mapping[str, Sequence[BandValue]], *, looks: Mapping[str, Look]) -> Figure:
    """Coherence of each frequency band with the reference (solid), and with the noise-free image where it is known (dotted)."""
    with styled():
        figure = new_figure(4.8, 3.2)
        axes = figure.subplots()
        for name, values in bands.items():
            look = looks.get(name, Look(MUTED, "."))
            _band_line(axes, values, [value[3] for value in values], look, "-", label=name)
            _band_line(axes, values, [nan if value[4] is None else value[4] for value in values], look, ":")
        axes.set(title="What of it is true", ylabel="coherence with the normal dose")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1)
        _band_axis(axes, bands)
    return figure


def _band_line(
    axes: Axes, values: Sequence[BandValue], heights: Sequence[float], look: Look, line: str, *, label: str | None = None
) -> None:
    middles = [0.5 * (value[0] + value[1]) for value in values]
    drawn = axes.plot(middles, heights, line, color=look.colour, linewidth=1.3, label=label)[0]
    if line == "-":
        drawn.set(marker=look.marker, markersize=4.5, markerfacecolor=look.face)


def _band_axis(axes: Axes, bands: Mapping[str, Sequence[BandValue]]) -> None:
    edges = sorted({edge for values in bands.values() for value in values for edge in value[:2]})
    axes.set_xlabel("spatial frequency  [cycles/mm], ticks at the bands' edges")
    axes.set_xticks(edges, minor=True)
    axes.tick_params(axis="x", which="minor", length=6, color=INK)
    axes.set_xlim(0, edges[-1])
    axes.grid(True, axis="y")


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
    with styled():
        figure = new_figure(11.5, 3.8)
        left, right = figure.subplots(1, 2)
        for (other, (at, value)), colour, dashes in zip(known.items(), OTHERS, DASHES, strict=False):
            left.plot(at, value, color=colour, linestyle=dashes, linewidth=1.1, label=other)
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
