"""The page of one scan: what denoising did to it, what it gained and what it cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.figures import (
    DEMO_LOOKS,
    INPUT,
    LUNG_WINDOW,
    OUTPUT,
    REFERENCE,
    SOFT_WINDOW,
    CropPlace,
    DisplayWindow,
    band_coherence_figure,
    band_ratio_figure,
    body_box,
    difference_window,
    find_crops,
    nps_figure,
    nps_shape_figure,
    resized,
    svg_text,
)
from finegrain.report.page import tile, window_words, write_page
from finegrain.report.words import (
    CAPTIONS,
    MEASURES,
    UNIFORM_NOTES,
    bands_in,
    first_known,
    is_known,
    measure_of,
    missing_because,
    number,
    percent,
    table_of,
)
from finegrain.spread import spread

MAX_SLICES = 3
"""A demo page shows at most so many slices: more would make it heavier than a mail can carry."""

CROP_FACTOR = 4
HARMLESS_SHIFT_HU = 1.0
"""Shifts of CT numbers below this are below the step in which a scanner stores them."""
OVERVIEW_WINDOW = DisplayWindow("overview", 0, 1400)


@dataclass(frozen=True)
class SliceView:
    """One slice in the three images that are compared.

    Attributes:
        name: where it is, e.g. "z = −83.5 mm".
        pixel_mm: pixel size in mm.
        normal_dose, low_dose, denoised: HU arrays, shape (y, x).
    """

    name: str
    pixel_mm: float
    normal_dose: NDArray[np.floating]
    low_dose: NDArray[np.floating]
    denoised: NDArray[np.floating]

    def __post_init__(self) -> None:
        shapes = {self.normal_dose.shape, self.low_dose.shape, self.denoised.shape}
        if len(shapes) > 1 or self.normal_dose.ndim != 2:
            raise DataError(f"slice {self.name}: expected three images of one shape (y, x), got {sorted(shapes)}")


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """All that a demo page shows.

    Attributes:
        title: of the page.
        what: one sentence about the scan; it must not identify the patient.
        dose_fraction: of the simulated low dose, in (0, 1].
        slices: slices to show, in order; at most three of them are shown.
        measures: "low dose" and "denoised" → measure key → value; the reference is the normal dose.
        nps: image name → (frequency in cycles/mm, radial noise power in HU² mm²).
        noise_sd_hu: image name → noise standard deviation in HU.
        timings_s: stage → seconds.
        facts: where the result comes from: scanner, kernel, photons, seed, versions.
        next_commands: (command, what it does).
        attribution: licence and citation of the scan, plain text.
        model_card: of the network, plain text.
    """

    title: str
    what: str
    dose_fraction: float
    slices: Sequence[SliceView]
    measures: Mapping[str, Mapping[str, float]]
    nps: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]] = field(default_factory=dict)
    noise_sd_hu: Mapping[str, float] = field(default_factory=dict)
    timings_s: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    next_commands: Sequence[tuple[str, str]] = ()
    attribution: str = ""
    model_card: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.slices:
            raise DataError("a demo report needs at least one slice, got none")
        if missing := {INPUT, OUTPUT} - set(self.measures):
            raise DataError(f"a demo report needs measures of 'low dose' and 'denoised'; missing: {sorted(missing)}")


def demo_headline(report: DemoReport) -> str:
    """One line that says what happened, from the numbers."""
    before, after, noise = report.measures[INPUT], report.measures[OUTPUT], report.noise_sd_hu
    sentences = []
    if is_known(noise.get(INPUT)) and is_known(noise.get(OUTPUT)):
        verb = "falls" if noise[OUTPUT] < noise[INPUT] else "goes"
        text = f"At {percent(report.dose_fraction)} of the dose, noise {verb} from {number(noise[INPUT], 0)} to "
        sentences.append(f"{text}{number(noise[OUTPUT], 0)} HU")
    coherence, ratio = (
        first_known(after, "hf_coherence", "fine_texture", "full"),
        first_known(after, "hf_ratio", "fine_texture", "full"),
    )
    if coherence and ratio and is_known(before.get(coherence)):
        more = (
            "better" if after[coherence] > before[coherence] else "no better" if after[coherence] == before[coherence] else "less"
        )
        text = f"Fine detail agrees {more} with the normal-dose scan (coherence {number(before[coherence], 2)} → "
        sentences.append(f"{text}{number(after[coherence], 2)}), holding {percent(after[ratio])} of its high-frequency energy")
    return ". ".join(sentences) + "." if sentences else report.title


def demo_verdict(report: DemoReport) -> list[str]:
    """What got better and what was lost, one sentence each, from the numbers alone."""
    before, after = report.measures[INPUT], report.measures[OUTPUT]
    sentences = [_noise_sentence(report), _psnr_sentence(before, after), _energy_sentence(before, after)]
    sentences += [_coherence_sentence(before, after), _bias_sentence(after)]
    return [sentence for sentence in sentences if sentence]


def _noise_sentence(report: DemoReport) -> str:
    normal, low, denoised = (report.noise_sd_hu.get(name) for name in (REFERENCE, INPUT, OUTPUT))
    if low is None or denoised is None or not (is_known(low) and is_known(denoised)):
        return ""
    start = f"from {number(normal, 0)} to {number(low, 0)} HU" if is_known(normal) else f"to {number(low, 0)} HU"
    text = f"At {percent(report.dose_fraction)} of the dose, noise rises {start}; "
    if denoised >= low:
        return text + f"denoising did not lower it ({number(denoised, 0)} HU)."
    text += f"denoising brings it down to {number(denoised, 0)} HU"
    return text + (", below that of the normal dose." if normal is not None and denoised < normal else ".")


def _psnr_sentence(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    key = first_known(after, "psnr_db")
    if key is None or not is_known(before.get(key)):
        return ""
    change = after[key] - before[key]
    _, protocol = measure_of(key)
    verb = "gains" if change > 0 else "loses" if change < 0 else "changes by"
    text = f"Against the normal-dose scan, PSNR {verb} {number(abs(change), 1)} dB, "
    text += f"from {number(before[key], 1)} to {number(after[key], 1)} ({protocol})"
    ssim = first_known(after, "ssim", key.partition("[")[2].removesuffix("]"))
    if ssim and is_known(before.get(ssim)):
        text += f", and SSIM goes from {number(before[ssim], 3)} to {number(after[ssim], 3)}"
    return text + "."


def _energy_sentence(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    key = first_known(after, "hf_ratio", "fine_texture", "full")
    if key is None:
        return ""
    _, place = measure_of(key)
    ratio = after[key]
    text = f"In {place}, the denoised image holds {percent(ratio)} of the normal dose's high-frequency energy"
    if is_known(before.get(key)):
        text += f" (low dose: {percent(before[key])})"
    if ratio < 0.95:
        return (
            text
            + ": texture was smoothed. Part of what is missing is the normal dose's own noise; part is detail, and that is lost."
        )
    if ratio > 1.05:
        return text + ": noise was left in."
    return text + ": as much as the original."


def _coherence_sentence(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    key = first_known(after, "hf_coherence", "fine_texture", "full")
    if key is None or not is_known(before.get(key)):
        return ""
    text = f"The coherence of that detail with the normal dose goes from {number(before[key], 2)} to {number(after[key], 2)}: "
    if after[key] > before[key]:
        return text + "more of the fine detail that you see is really there."
    return text + "less of the fine detail that you see is really there, and true structure was lost with the noise."


def _bias_sentence(after: Mapping[str, float]) -> str:
    shifts = {key: value for key, value in after.items() if key.startswith("hu_bias[") and math.isfinite(value)}
    if not shifts:
        return ""
    worst = max(shifts, key=lambda key: abs(shifts[key]))
    return f"CT numbers moved by {number(shifts[worst], 1, sign=True)} HU at most ({measure_of(worst)[1]})."


def render_demo(report: DemoReport, path: Path) -> None:
    """Write the page of one scan. The file appears whole or not at all."""
    shown = spread(report.slices, MAX_SLICES)
    crops = {view.name: find_crops(view.normal_dose, pixel_mm=view.pixel_mm) for view in shown}
    main = max(shown, key=lambda view: (len(crops[view.name]), sum(place.score for place in crops[view.name][:1])))
    box = body_box([view.normal_dose for view in shown])
    noise = np.concatenate([(view.low_dose - view.normal_dose)[box].ravel() for view in shown])
    difference = difference_window(noise)
    write_page(
        path,
        "demo.html.j2",
        report=report,
        headline=demo_headline(report),
        verdict=demo_verdict(report),
        summary=_summary(report),
        hero=_slider(main, box),
        slices=[_slice_panel(view, box, difference) for view in shown],
        first=shown.index(main),
        n_hidden=len(report.slices) - len(shown),
        crops=[_crop_panel(main, place, difference) for place in crops[main.name]],
        overview=_overview(main, box, crops[main.name]),
        groups=_measure_groups(report.measures, details=False),
        detail_groups=_measure_groups(report.measures, details=True),
        attribution=plain_paragraphs(report.attribution),
        plots=_nps_plots(report.nps),
        band_plots=_band_plots(report.measures),
        total_s=sum(value for value in report.timings_s.values() if math.isfinite(value)),
    )


def _summary(report: DemoReport) -> list[dict[str, str]]:
    """The four numbers of the page's head: name, before, after, note."""
    before, after, noise = report.measures[INPUT], report.measures[OUTPUT], report.noise_sd_hu
    rows = []
    if INPUT in noise and OUTPUT in noise:
        note = f"normal dose: {number(noise.get(REFERENCE), 1)}"
        rows.append({"name": "Noise, HU", "before": number(noise[INPUT], 1), "after": number(noise[OUTPUT], 1), "note": note})
    for name in ("psnr_db", "hf_ratio", "hf_coherence"):
        key = first_known(after, name, "fine_texture", "full") if name.startswith("hf") else first_known(after, name)
        if key is not None:
            measure, place = measure_of(key)
            decimals = 1 if name == "psnr_db" else 2
            label = measure.label + (f", {measure.unit}" if measure.unit else "")
            values = {"before": number(before.get(key), decimals), "after": number(after[key], decimals)}
            note = f"{place}; ideal: {measure.ideal}" if measure.ideal else place
            rows.append({"name": label, **values, "note": note})
    return rows


def _slider(view: SliceView, box: tuple[slice, slice]) -> dict[str, Any]:
    before, after = (tile(SOFT_WINDOW.to_gray(image[box]), label) for image, label in _low_and_denoised(view))
    return {"before": before, "after": after, "name": view.name, "window": window_words(SOFT_WINDOW)}


def _low_and_denoised(view: SliceView) -> list[tuple[NDArray[np.floating], str]]:
    return [(view.low_dose, INPUT), (view.denoised, OUTPUT)]


def _slice_panel(view: SliceView, box: tuple[slice, slice], difference: DisplayWindow) -> dict[str, Any]:
    """Two rows of four images: soft-tissue and lung window, each with a difference that should be free of anatomy."""
    images = [(view.normal_dose, REFERENCE), *_low_and_denoised(view)]
    rows = [
        [tile(window.to_gray(image[box]), label, window_words(window)) for image, label in images]
        for window in (SOFT_WINDOW, LUNG_WINDOW)
    ]
    removed = difference.to_gray((view.denoised - view.low_dose)[box])
    added = difference.to_gray((view.normal_dose - view.low_dose)[box])
    half = f"±{difference.width / 2:g} HU"
    rows[0].append(tile(removed, "what was removed", f"denoised − low dose, {half}"))
    rows[1].append(tile(added, "what low dose had added", f"normal − low dose, {half}"))
    width_mm = rows[0][0]["columns"] * view.pixel_mm
    return {
        "name": view.name,
        "rows": rows,
        "bar_percent": 100 * 50 / width_mm,
    }


def _crop_panel(view: SliceView, place: CropPlace, difference: DisplayWindow) -> dict[str, Any]:
    images = [(view.normal_dose, REFERENCE), *_low_and_denoised(view)]
    tiles = [tile(place.window.to_gray(resized(place.of(image), CROP_FACTOR)), label) for image, label in images]
    removed = resized(place.of(view.denoised - view.low_dose), CROP_FACTOR)
    tiles.append(tile(difference.to_gray(removed), "what was removed", f"±{difference.width / 2:g} HU"))
    return {
        "name": place.name,
        "tiles": tiles,
        "window": window_words(place.window),
        "side_mm": place.side * view.pixel_mm,
        "bar_percent": 100 * 10 / (place.side * view.pixel_mm),
    }


def _overview(view: SliceView, box: tuple[slice, slice], places: Sequence[CropPlace]) -> dict[str, Any]:
    shown = view.normal_dose[box]
    marks = [
        {"number": index, "x": place.column - box[1].start, "y": place.row - box[0].start, "side": place.side}
        for index, place in enumerate(places, start=1)
    ]
    return {**tile(OVERVIEW_WINDOW.to_gray(shown), REFERENCE), "marks": marks, "name": view.name}


def _nps_plots(nps: Mapping[str, tuple[NDArray, NDArray]]) -> list[Markup]:
    if not nps:
        return []
    ordered = {name: nps[name] for name in (REFERENCE, INPUT, OUTPUT) if name in nps} | dict(nps)
    return [Markup(svg_text(nps_figure(ordered), "nps")), Markup(svg_text(nps_shape_figure(ordered), "shape"))]


def _band_plots(measures: Mapping[str, Mapping[str, float]]) -> list[Markup]:
    bands = {name: bands_in(measures[name]) for name in (INPUT, OUTPUT)}
    if not all(bands.values()):
        return []
    figures = {"ratio": band_ratio_figure(bands, looks=DEMO_LOOKS), "coherence": band_coherence_figure(bands, looks=DEMO_LOOKS)}
    return [Markup(svg_text(figure, name)) for name, figure in figures.items()]


def _measure_groups(measures: Mapping[str, Mapping[str, float]], *, details: bool) -> list[dict[str, Any]]:
    """Rows of a table of measures under captions: those that matter first, or the others."""
    tables = ("details",) if details else ("results", "tissues", "regions")
    keys = [key for key in dict.fromkeys([*measures[OUTPUT], *measures[INPUT]]) if table_of(key) in tables]
    groups: dict[str, list[dict[str, Any]]] = {}
    caption = ""
    for name in [*MEASURES, None]:
        members = [key for key in keys if key.partition("[")[0] == name or (name is None and key.partition("[")[0] not in MEASURES)]
        caption = CAPTIONS.get(name or "", caption) if name else "Other measures"
        if members:
            groups.setdefault(caption, []).extend(
                _measure_row(key, measures[INPUT].get(key), measures[OUTPUT].get(key), first=index == 0)
                for index, key in enumerate(members)
            )
    return [{"caption": caption, "rows": rows, "n": len(rows)} for caption, rows in groups.items()]


def _measure_row(key: str, before: float | None, after: float | None, *, first: bool) -> dict[str, Any]:
    measure, place = measure_of(key)
    change = after - before if before is not None and after is not None else math.nan
    judged = not key.endswith("[uniform]")
    return {
        "key": key,
        "label": measure.label,
        "place": place,
        "unit": measure.unit,
        "ideal": measure.ideal,
        "meaning": (measure.meaning if first else "") if judged else UNIFORM_NOTES.get(key.partition("[")[0], ""),
        "before": number(before, measure.decimals),
        "after": number(after, measure.decimals),
        "change": number(change, measure.decimals, sign=True) if math.isfinite(change) else "",
        "trend": _trend(measure.better, before, after, decimals=measure.decimals) if judged else "",
        "why_missing": missing_because(key),
    }


def _trend(better: str, before: float | None, after: float | None, *, decimals: int) -> str:
    """Whether the second value is "better" than the first, "worse", "same", "harmless", or "" if that cannot be said."""
    if before is None or after is None or not (is_known(before) and is_known(after)) or not better:
        return ""
    cost = {"higher": lambda v: -v, "lower": lambda v: v, "zero": abs, "one": lambda v: abs(math.log(max(v, 1e-9)))}[better]
    if number(before, decimals) == number(after, decimals):
        return "same"
    if better == "zero" and max(abs(before), abs(after)) < HARMLESS_SHIFT_HU:
        return "harmless"
    return "better" if cost(after) < cost(before) else "worse"


def plain_paragraphs(text: str) -> list[str]:
    """The paragraphs of a plain or Markdown text, without its marks.

    >>> plain_paragraphs("# Source\\n\\n**Please** cite\\nthis.\\n* one")
    ['Source', 'Please cite this.', '• one']
    """
    paragraphs: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=[*-] )", text.strip()):
        words = " ".join(block.split())
        words = re.sub(r"\*\*|`|^#+ |<(?=https?://)|(?<=\S)>(?=[\s.,;)]|$)", "", words)
        paragraphs.append(re.sub(r"^[*-] ", "• ", words))
    return [paragraph for paragraph in paragraphs if paragraph]
