"""The page that a medical physicist files: verdicts, where everything was measured, the curves, the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finegrain import __version__
from finegrain.figures import BLUE, INK, MUTED, ORANGE, OTHERS, DisplayWindow, svg_text
from finegrain.figures.style import new_figure, styled
from finegrain.physics.checks import QUANTITIES, Measured, all_keys, value_text
from finegrain.physics.compare import Verdict, allowed_text
from finegrain.physics.geometry import Phantom
from finegrain.physics.places import Places
from finegrain.report.page import tile, window_words, write_page
from finegrain.report.words import number

FACTS = {
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "ConvolutionKernel": "kernel",
    "KVP": "kVp",
    "Exposure": "mAs",
    "XRayTubeCurrent": "tube current, mA",
    "CTDIvol": "CTDIvol, mGy",
    "SpiralPitchFactor": "pitch",
    "ReconstructionDiameter": "field of view, mm",
}
"""Header facts that the page shows, and what it calls them."""

FILM_PIXELS = 480
"""Least side of a picture on the page: smaller images are enlarged by whole pixels, so that noise keeps its grain."""

WIDE_WINDOW, STRONG_ROD_HU = 400.0, 60.0
"""Width of the display window where there are rods stronger than this, in HU; ours."""

NOISES_IN_WINDOW = 12.0
"""Width of the display window of a phantom without strong rods, in standard deviations of its noise; ours."""


def write_physics_page(
    path: Path,
    measured: Sequence[Measured],
    phantom: Phantom,
    places: Places,
    verdicts: Sequence[Verdict],
    *,
    summary: str,
    notes: Sequence[str],
    measured_on: str,
    settings_hash: str,
) -> None:
    """Write the page: one file that loads nothing."""
    names = [one.scan.name for one in measured]
    box = _box(phantom, measured[0].mean_hu.shape, measured[0].scan.pixel_mm)
    window, mean_window = _windows(measured[0], phantom)
    write_page(
        path,
        "physics.html.j2",
        report={"title": "Phantom checks"},
        summary=summary,
        failed=sum(not verdict.passed for verdict in verdicts),
        n_verdicts=len(verdicts),
        names=names,
        groups=_groups(measured, verdicts),
        sources=_sources(verdicts),
        overlays=_overlays(measured[0], phantom, places, box, mean_window),
        n_squares=len(places.squares),
        side=places.side,
        films=_films(measured, phantom, box, window),
        spectra=[_spectrum_tile(one) for one in measured if one.nps],
        nps_plots=_nps_plots(measured),
        ttf_plots=_ttf_plots(measured, phantom),
        profile_plot=Markup(svg_text(_profile_figure(measured), "profiles")),
        facts=_facts(measured),
        phantom=_phantom_facts(measured[0], phantom),
        rods=phantom.rods.rods if phantom.rods else (),
        notes=notes,
        measured_on=measured_on,
        version=__version__,
        settings_hash=settings_hash,
    )


# --- tables -----------------------------------------------------------------------------------------------------------------


def _groups(measured: Sequence[Measured], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The checks by quantity: a row each, a cell per scan with its value and its verdicts."""
    groups: dict[str, dict[str, Any]] = {}
    for key in all_keys(measured):
        found = [one.check(key) for one in measured]
        check = next(one for one in found if one is not None)
        quantity = QUANTITIES[check.quantity]
        cells = []
        for one, here in zip(measured, found, strict=True):
            judged = [v for v in verdicts if (v.scan, v.key) == (one.scan.name, key)]
            cells.append(
                {
                    "value": value_text(here) if here else "–",
                    "verdicts": [_verdict_cell(v, quantity.decimals, here.value if here else np.nan) for v in judged],
                    "warnings": here.warnings if here else (),
                }
            )
        group = groups.setdefault(check.quantity, {"quantity": quantity, "rows": []})
        group["rows"].append(
            {"place": check.place, "cells": cells, "warnings": list(dict.fromkeys(w for c in cells for w in c["warnings"]))}
        )
    return list(groups.values())


def _verdict_cell(verdict: Verdict, decimals: int, value: float) -> dict[str, Any]:
    held_to = {"limit": "limit", "before": "against before", "baseline": "against baseline"}[verdict.against]
    change = number(value - verdict.reference, decimals, sign=True) if verdict.against != "limit" else ""
    return {
        "word": "pass" if verdict.passed else "fail",
        "close": verdict.certain is False,
        "text": f"{held_to}{' ' + change if change else ''}; allowed {allowed_text(verdict, decimals, value)}",
    }


def _sources(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """Where what is allowed comes from: the checks, and their source."""
    found: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        kind = "limits" if verdict.against == "limit" else "changes"
        found.setdefault((kind, verdict.source), []).append(QUANTITIES[verdict.key.partition("[")[0]].label)
    return [(f"{kind} of {', '.join(dict.fromkeys(labels))}", source) for (kind, source), labels in found.items()]


def _facts(measured: Sequence[Measured]) -> list[tuple[str, list[str]]]:
    """What is known of each scan: a row per fact, a value per scan."""
    rows: list[tuple[str, list[str]]] = []
    for keyword, name in FACTS.items():
        values = [one.scan.facts.get(keyword) for one in measured]
        if any(value is not None for value in values):
            rows.append((name, [f"{v:g}" if isinstance(v, float) else "–" if v is None else str(v) for v in values]))
    scans = [one.scan for one in measured]
    rows.append(("slice thickness, mm", [f"{scan.thickness_mm:g}" for scan in scans]))
    rows.append(("pixel, mm", [f"{scan.pixel_mm:.4g}" for scan in scans]))
    rows.append(("matrix", ["×".join(map(str, scan.hu.shape[2:])) for scan in scans]))
    rows.append(("repeats × slices", [f"{scan.n_repeats} × {scan.hu.shape[1]}" for scan in scans]))
    return rows


def _phantom_facts(first: Measured, phantom: Phantom) -> dict[str, str]:
    def slices(part: slice) -> str:
        return f"{part.start + 1} to {part.stop}"

    body = phantom.body
    found = {
        "body": f"{2 * body.radius_mm:.2f} mm wide, outline round to {body.rms_mm:.2f} mm rms",
        "its centre": f"row {body.row:.2f}, column {body.column:.2f}",
        "uniform section": f"slices {slices(phantom.uniform.slices)}",
    }
    if phantom.rods is not None:
        found["section with rods"] = f"slices {slices(phantom.rods.slices)}"
    return found


# --- pictures ---------------------------------------------------------------------------------------------------------------


def _box(phantom: Phantom, shape: Sequence[int], pixel_mm: float) -> tuple[slice, slice]:
    reach = 1.06 * phantom.body.radius_mm / pixel_mm
    ends = [(round(c - reach), round(c + reach) + 1) for c in (phantom.body.row, phantom.body.column)]
    rows, columns = (slice(max(0, a), min(n, b)) for (a, b), n in zip(ends, shape, strict=True))
    return rows, columns


def _windows(first: Measured, phantom: Phantom) -> tuple[DisplayWindow, DisplayWindow]:
    """For single and for mean images: wide enough for strong rods, else narrow enough to see noise, and weak rods above it."""
    rods = phantom.rods.rods if phantom.rods else ()
    water = round(float(np.median(first.mean_hu[phantom.uniform.plain])))
    noise = next(check for check in first.checks if check.quantity == "noise")
    if any(abs(rod.contrast_hu) > STRONG_ROD_HU for rod in rods):
        strong = DisplayWindow("phantom", water, WIDE_WINDOW)
        return strong, strong
    single, mean = (
        float(np.clip(round(NOISES_IN_WINDOW * hu, -1), 20, WIDE_WINDOW)) for hu in (noise.value, noise.value / noise.n**0.5)
    )
    return DisplayWindow("phantom", water, single), DisplayWindow("phantom", water, mean)


def _film(hu: NDArray[np.floating], window: DisplayWindow, label: str, note: str) -> dict[str, Any]:
    return tile(_enlarged(window.to_gray(hu)), label, note)


def _enlarged(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, -(-FILM_PIXELS // max(gray.shape)))
    return np.kron(gray, np.ones((times, times), dtype=np.uint8)) if times > 1 else gray


def _overlays(
    first: Measured, phantom: Phantom, places: Places, box: tuple[slice, slice], window: DisplayWindow
) -> list[dict[str, Any]]:
    """The mean images with everything drawn in that was measured in them; lengths in pixels of the box."""
    top, left = box[0].start, box[1].start
    pixel_mm = first.scan.pixel_mm

    def circle(row: float, column: float, radius: float, label: str = "") -> dict[str, Any]:
        # A pixel's centre is half a pixel from the corner that SVG counts from.
        return {"x": column - left + 0.5, "y": row - top + 0.5, "r": radius, "label": label}

    body = circle(phantom.body.row, phantom.body.column, phantom.body.radius_mm / pixel_mm)
    uniform = {
        "tile": _film(first.mean_hu[box], window, "uniform section", f"mean of all images, {window_words(window)}"),
        "size": (box[1].stop - left, box[0].stop - top),
        "body": body,
        "spots": [circle(spot.row, spot.column, spot.radius, spot.name) for spot in places.spots],
        "noise": circle(places.noise_disc.row, places.noise_disc.column, places.noise_disc.radius),
        "squares": [{"x": column - left, "y": row - top, "side": places.side} for row, column in places.squares],
        "rods": [],
    }
    if phantom.rods is None or first.rods_hu is None:
        return [uniform]
    rods = {
        "tile": _film(first.rods_hu[box], window, "section with rods", f"mean of all images, {window_words(window)}"),
        "size": uniform["size"],
        "body": body,
        "spots": [],
        "noise": None,
        "squares": [],
        "rods": [circle(rod.row, rod.column, rod.radius_mm / pixel_mm, rod.name) for rod in phantom.rods.rods],
    }
    return [uniform, rods]


def _films(measured: Sequence[Measured], phantom: Phantom, box: tuple[slice, slice], window: DisplayWindow) -> list[dict[str, Any]]:
    """One image of each scan, and what each method changed in the mean image."""
    films = [_film(one.single_hu[box], window, one.scan.name, f"one image, {window_words(window)}") for one in measured]
    noise = next(check.value for check in measured[0].checks if check.quantity == "noise")
    change = DisplayWindow("difference", 0, float(np.clip(round(4 * noise), 4, 100)))

    def shown(one: Measured) -> NDArray[np.float64]:
        return one.mean_hu if one.rods_hu is None else one.rods_hu

    for one in measured[1:]:
        difference = shown(one) - shown(measured[0])
        films.append(
            _film(difference[box], change, f"{one.scan.name} − {measured[0].scan.name}", f"mean images, {window_words(change)}")
        )
    return films


def _spectrum_tile(one: Measured) -> dict[str, Any]:
    """The two-dimensional spectrum, its square root from 0 (black) to its own peak (white)."""
    assert one.nps is not None
    root = np.sqrt(one.nps.whole.power / max(float(one.nps.whole.power.max()), 1e-300))
    edge = float(one.nps.whole.frequency_per_mm[-1])
    peak = number(float(one.nps.whole.power.max()), 1)
    note = f"±{edge:.2f} cycles/mm, peak {peak} HU² mm²"
    return tile(_enlarged((255 * root).round().astype(np.uint8)), one.scan.name, note)


# --- plots ------------------------------------------------------------------------------------------------------------------


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Ink for a single scan; orange before, blue and others after."""
    if len(names) == 1:
        return {names[0]: INK}
    others = [colour for colour in OTHERS if colour not in (ORANGE, BLUE)]
    return dict(zip(names, (ORANGE, BLUE, *others, *[MUTED] * len(names)), strict=False))


def _finish(axes: Axes, *, title: str, xlabel: str, ylabel: str) -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(True, axis="y")


def _nps_plots(measured: Sequence[Measured]) -> list[Markup]:
    """The radial spectra with the standard error of each ring, and the same at equal area."""
    known = {one.scan.name: one.nps for one in measured if one.nps}
    if not known:
        return []
    colours = _colours([one.scan.name for one in measured])
    plots = []
    for name, title, ylabel in (
        ("nps", "How much noise", "noise power  [HU² mm²]"),
        ("nps-shape", "What it looks like", "share per cycle/mm  [mm]"),
    ):
        with styled():
            figure = new_figure(6.0, 3.4)
            axes = figure.subplots()
            for scan, nps in known.items():
                f, power = nps.radial.frequency_per_mm, nps.radial.power
                scale = 1.0 if name == "nps" else float(np.trapezoid(power, f))
                reach = 1.96 * np.nan_to_num(nps.standard_error)
                axes.fill_between(f, (power - reach) / scale, (power + reach) / scale, color=colours[scan], alpha=0.2, linewidth=0)
                axes.plot(f, power / scale, color=colours[scan], label=scan)
            _finish(axes, title=title, xlabel="spatial frequency  [cycles/mm]", ylabel=ylabel)
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.legend(loc="upper right")
        plots.append(Markup(svg_text(figure, name)))
    return plots


def _ttf_plots(measured: Sequence[Measured], phantom: Phantom) -> list[Markup]:
    """The transfer at each rod, all scans in one plot."""
    colours = _colours([one.scan.name for one in measured])
    plots = []
    for index, rod in enumerate(phantom.rods.rods if phantom.rods else ()):
        known = {one.scan.name: one.ttf[rod.name] for one in measured if rod.name in one.ttf}
        if not known:
            continue
        with styled():
            figure = new_figure(4.4, 3.0)
            axes = figure.subplots()
            last = 0.0
            for scan, ttf in known.items():
                if ttf.interval is not None:
                    band = (ttf.interval.low, ttf.interval.high)
                    axes.fill_between(ttf.frequency_per_mm, *band, color=colours[scan], alpha=0.2, linewidth=0)
                axes.plot(ttf.frequency_per_mm, ttf.ttf, color=colours[scan], label=scan)
                last = max(last, ttf.f10_per_mm if np.isfinite(ttf.f10_per_mm) else 0.0)
            for level in (0.5, 0.1):
                axes.axhline(level, color=MUTED, linewidth=0.7, linestyle=(0, (2, 3)))
            contrast = next(iter(known.values())).contrast_hu
            title = f"{rod.name}, {number(contrast, 0, sign=True)} HU"
            _finish(axes, title=title, xlabel="spatial frequency  [cycles/mm]", ylabel="TTF")
            axes.set_xlim(0, 1.5 * last if last else None)
            axes.set_ylim(-0.1, 1.25)
            axes.legend(loc="upper right")
        plots.append(Markup(svg_text(figure, f"ttf-{index}")))
    return plots


def _profile_figure(measured: Sequence[Measured]) -> Figure:
    """The mean image along a row and a column through the centre, near the plain material's CT number."""
    colours = _colours([one.scan.name for one in measured])
    with styled():
        figure = new_figure(10.0, 3.0)
        both = figure.subplots(1, 2, sharey=True)
        middle = float(np.median(measured[0].profiles["horizontal"]))
        noise = next(check.value for check in measured[0].checks if check.quantity == "noise")
        for axes, direction in zip(both, ("horizontal", "vertical"), strict=True):
            for one in measured:
                axes.plot(one.profile_mm, one.profiles[direction], color=colours[one.scan.name], label=one.scan.name, linewidth=1.2)
            _finish(
                axes, title=direction, xlabel="from the centre  [mm]", ylabel="CT number  [HU]" if direction == "horizontal" else ""
            )
            reach = max(10.0, 2 * noise)
            axes.set_ylim(middle - reach, middle + reach)
        both[0].legend(loc="lower center")
    return figure
