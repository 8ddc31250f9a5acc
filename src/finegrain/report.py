"""Results + figures → one self-contained HTML page: no network, no script that it needs, numbers before adjectives.

`render_demo` shows one scan, `render_study` compares networks. What the pages say in words is made here from the numbers, so
that a page cannot praise what its table does not show.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.figures import (
    INPUT,
    LUNG_WINDOW,
    OUTPUT,
    REFERENCE,
    SOFT_WINDOW,
    CropPlace,
    CropView,
    DisplayWindow,
    StudyRow,
    bar_figure,
    body_box,
    curve_figure,
    difference_window,
    find_crops,
    front_figure,
    nps_figure,
    nps_shape_figure,
    pick_row,
    png_uri,
    resized,
    svg_text,
)
from finegrain.files import write_whole

__all__ = ["CropView", "DemoReport", "SliceView", "StudyReport", "StudyRow", "render_demo", "render_study"]

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


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """All that a study page shows.

    Attributes:
        title: of the page.
        scale_note: how large the study was, and whether that is small, in a few sentences.
        arms: one mapping per network: name, family, loss (in words), parameters, macs_per_512, seconds_per_slice, best_step,
            train_seconds.
        proposed: name of the arm that is compared with every other.
        table: one row per measure; the input is the arm "low dose". Methods that are no arm (blends of the input, a band
            equaliser: "blend 0.2") are shown as free competitors.
        comparisons: one mapping per measure and baseline: metric, baseline, n, mean_difference, ci_low, ci_high (proposed −
            baseline, 95 %), p_t, p_wilcoxon, p_holm, effect_size, verdict (in words).
        curves: arm → [(step, validation rmse_hu), …].
        crops: the same places in the images of all arms.
        per_patient: measure key → arm → one value per patient.
        facts: data, versions, hashes.
        config_yaml: the resolved configuration.
        claims: one mapping per claim of the paper: claim, found, verdict ("reproduced", "not reproduced", "opposite" or
            "cannot be said"), why.
    """

    title: str
    scale_note: str
    arms: Sequence[Mapping[str, Any]]
    proposed: str
    table: Sequence[StudyRow]
    comparisons: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    crops: Sequence[CropView] = ()
    per_patient: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    config_yaml: str = ""
    claims: Sequence[Mapping[str, str]] = ()


# --- what each measure is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: its name, unit, number of decimals, which way is better, its best value, and what it tells."""

    label: str
    unit: str
    decimals: int
    better: Literal["higher", "lower", "one", "zero", ""]
    ideal: str
    meaning: str


MEASURES = {
    "psnr_db": Measure("PSNR", "dB", 2, "higher", "", "How close every pixel is to the normal dose. Blur can raise it."),
    "ssim": Measure("SSIM", "", 4, "higher", "1", "How alike local structure and contrast are."),
    "rmse_hu": Measure("RMSE", "HU", 2, "lower", "0", "Root mean square error of a pixel, without a window."),
    "mae_hu": Measure("Mean absolute error", "HU", 2, "lower", "0", "Mean error of a pixel, without a window."),
    "hf_ratio": Measure(
        "HF energy ratio",
        "",
        3,
        "one",
        "1",
        "High-frequency energy against the normal dose. Below 1: smoothed. Above 1: noise left.",
    ),
    "hf_coherence": Measure(
        "HF coherence", "", 3, "higher", "1", "How much of that high-frequency detail agrees with the normal dose. Noise lowers it."
    ),
    "texture_index": Measure(
        "Texture index", "", 3, "lower", "0", "Mean relative error of seven texture statistics that a reader would feel."
    ),
    "hf_coherence_truth": Measure(
        "HF coherence with truth", "", 3, "higher", "1", "The same against the noise-free image, known in simulation only."
    ),
    "hf_consistency": Measure("HF consistency", "", 3, "higher", "1", "The energy ratio r or 1/r, whichever is smaller."),
    "texture_error": Measure("Texture error", "", 3, "lower", "0", "The relative errors whose mean is the texture index."),
    "nps_log_distance": Measure("NPS distance", "", 3, "lower", "0", "How far the noise spectrum is from the normal dose's."),
    "nps_shape_log_distance": Measure(
        "NPS shape distance",
        "",
        3,
        "lower",
        "0",
        "The same for spectra of equal area: what the noise looks like, not how much there is.",
    ),
    "nmr": Measure("Noise magnitude ratio", "", 3, "", "1", "Noise SD in soft tissue, as a part of the normal dose's."),
    "cfr": Measure("Noise peak frequency ratio", "", 3, "one", "1", "Below 1, the noise has become blotchy."),
    "hu_bias": Measure("CT number shift", "HU", 2, "zero", "0", "Mean HU against the normal dose. It must stay near zero."),
}
"""Measures that a reader meets; one that is not listed is shown under its key."""

PLACES = {
    "full": "whole body",
    "body": "whole body",
    "fine_texture": "fine-texture regions",
    "uniform": "uniform regions",
    "soft": "soft tissue",
    "full-range": "−1024 to 3071 HU",
    "contrast": "GLCM contrast",
    "correlation": "GLCM correlation",
    "homogeneity": "GLCM homogeneity",
    "entropy": "GLCM entropy",
    "local_sd": "local standard deviation",
    "lbp": "local binary patterns",
    "nps_shape": "shape of the spectrum",
}

DETAILS = {"rmse_hu", "mae_hu", "hf_consistency", "hf_coherence_truth", "texture_error", "nps_shape_log_distance"}
"""Measures for those who ask: they stand in a table of their own, below the first."""

UNIFORM_NOTES = {
    "hf_ratio": "There is no texture here, only noise: a low value is noise removed.",
    "hf_coherence": "There is no texture here: agreement is with the normal dose's own noise.",
}

CAPTIONS = {
    "psnr_db": "Likeness to the normal-dose scan",
    "hf_ratio": "Fine texture",
    "hu_bias": "CT numbers",
    "nps_log_distance": "Noise power in soft tissue, against the normal dose's",
}


def measure_of(key: str) -> tuple[Measure, str]:
    """A measure and the place or protocol in words, of a key such as `psnr_db[abdomen-40/400]`.

    >>> measure_of("psnr_db[abdomen-40/400]")[1]
    'window 40/400 HU'
    """
    name, _, place = key.partition("[")
    place = place.removesuffix("]")
    measure = MEASURES.get(name, Measure(name.replace("_", " "), "", 3, "", "", ""))
    return measure, ", ".join(_place_words(part) for part in place.split(",")) if place else ""


def _place_words(place: str) -> str:
    window = re.fullmatch(r".*?-(-?[\d.]+)/([\d.]+)", place)
    if window:
        return f"window {_minus(window[1])}/{window[2]} HU"
    return PLACES.get(place, place.replace("_", " "))


def is_detail(key: str) -> bool:
    """Whether a measure belongs in the second table."""
    name, _, place = key.partition("[")
    return name in DETAILS or (name in ("psnr_db", "ssim") and "," in place)


# --- numbers in words ------------------------------------------------------------------------------------------------------


def number(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """A number for readers: fixed decimals, a true minus sign, "n/a" for what is not known.

    >>> number(-1.234, 1), number(float("nan")), number(0.5, 1, sign=True)
    ('−1.2', 'n/a', '+0.5')
    """
    if value is None or math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = round(float(value), decimals) + 0.0
    return _minus(f"{rounded:{'+' if sign and rounded else ''}.{decimals}f}")


def percent(fraction: float) -> str:
    """A fraction as a percentage: 0.25 → "25 %"."""
    if math.isnan(fraction):
        return "n/a"
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


def p_value(value: float | None) -> str:
    """A p-value for readers."""
    if value is None or math.isnan(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """A duration for readers: "0.18 s", "12.3 s", "4 min 10 s"."""
    if value is None or math.isnan(value):
        return "n/a"
    if value < 10:
        return f"{value:.2f} s"
    return f"{value:.1f} s" if value < 120 else f"{int(value // 60)} min {int(value % 60)} s"


def scaled(value: float | None) -> str:
    """A large count for readers: "448 k", "1.85 M", "12.3 G"."""
    if value is None or math.isnan(value):
        return "n/a"
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def missing_because(key: str) -> str:
    """Why a measure has no value."""
    measure, place = measure_of(key)
    where = place.rpartition(", ")[2]
    if where and not where.startswith("window"):
        return f"{measure.label} is not defined here: too few pixels of “{where}” in these slices"
    return f"{measure.label} is not defined for these images"


def _first(values: Mapping[str, float], name: str, *places: str) -> str | None:
    """The key of a measure at the first of these places, else anywhere, with a finite value."""
    keys = [f"{name}[{place}]" for place in places] + [key for key in values if key.partition("[")[0] == name]
    return next((key for key in keys if math.isfinite(values.get(key, math.nan))), None)


def demo_headline(report: DemoReport) -> str:
    """One line that says what happened, from the numbers."""
    before, after, noise = report.measures[INPUT], report.measures[OUTPUT], report.noise_sd_hu
    sentences = []
    if _known(noise.get(INPUT)) and _known(noise.get(OUTPUT)):
        verb = "falls" if noise[OUTPUT] < noise[INPUT] else "goes"
        text = f"At {percent(report.dose_fraction)} of the dose, noise {verb} from {number(noise[INPUT], 0)} to "
        sentences.append(f"{text}{number(noise[OUTPUT], 0)} HU")
    coherence, ratio = _first(after, "hf_coherence", "fine_texture", "full"), _first(after, "hf_ratio", "fine_texture", "full")
    if coherence and ratio and _known(before.get(coherence)):
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
    if low is None or denoised is None or not (_known(low) and _known(denoised)):
        return ""
    start = f"from {number(normal, 0)} to {number(low, 0)} HU" if _known(normal) else f"to {number(low, 0)} HU"
    text = f"At {percent(report.dose_fraction)} of the dose, noise rises {start}; "
    if denoised >= low:
        return text + f"denoising did not lower it ({number(denoised, 0)} HU)."
    text += f"denoising brings it down to {number(denoised, 0)} HU"
    return text + (", below that of the normal dose." if normal is not None and denoised < normal else ".")


def _psnr_sentence(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    key = _first(after, "psnr_db")
    if key is None or not _known(before.get(key)):
        return ""
    change = after[key] - before[key]
    _, protocol = measure_of(key)
    verb = "gains" if change > 0 else "loses" if change < 0 else "changes by"
    text = f"Against the normal-dose scan, PSNR {verb} {number(abs(change), 1)} dB, "
    text += f"from {number(before[key], 1)} to {number(after[key], 1)} ({protocol})"
    ssim = _first(after, "ssim", key.partition("[")[2].removesuffix("]"))
    if ssim and _known(before.get(ssim)):
        text += f", and SSIM goes from {number(before[ssim], 3)} to {number(after[ssim], 3)}"
    return text + "."


def _energy_sentence(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    key = _first(after, "hf_ratio", "fine_texture", "full")
    if key is None:
        return ""
    _, place = measure_of(key)
    ratio = after[key]
    text = f"In {place}, the denoised image holds {percent(ratio)} of the normal dose's high-frequency energy"
    if _known(before.get(key)):
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
    key = _first(after, "hf_coherence", "fine_texture", "full")
    if key is None or not _known(before.get(key)):
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


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def study_verdict(report: StudyReport) -> list[str]:
    """What the study found, one sentence each, from the numbers alone."""
    sentences = []
    if psnr := pick_row(report.table, "psnr_db"):
        mean, _, n = psnr.values.get(report.proposed, (math.nan, math.nan, 0))
        start = psnr.values.get(INPUT, (math.nan,))[0]
        if _known(mean) and _known(start):
            text = f"On {n} test patient{'s' if n != 1 else ''}, “{report.proposed}” changes PSNR by "
            text += f"{number(mean - start, 2, sign=True)} dB against the low-dose input"
            sentences.append(text + _against_baselines(report, psnr.key) + ".")
    ratio = pick_row(report.table, "hf_ratio", "fine_texture", "full")
    coherence = pick_row(report.table, "hf_coherence", "fine_texture", "full")
    if ratio and coherence and _known(ratio.values.get(report.proposed, (math.nan,))[0]):
        text = (
            f"It holds {percent(ratio.values[report.proposed][0])} of the normal dose's high-frequency energy, at a coherence of "
        )
        text += f"{number(coherence.values.get(report.proposed, (math.nan,))[0], 3)}"
        others = [arm["name"] for arm in report.arms if arm["name"] != report.proposed and arm["name"] in coherence.values]
        span = [coherence.values[arm][0] for arm in others if _known(coherence.values[arm][0])]
        if span:
            text += f" (the other networks: {number(min(span), 3)} to {number(max(span), 3)})"
        sentences.append(text + ".")
    return sentences


def _against_baselines(report: StudyReport, key: str) -> str:
    differences = [
        f"{number(row['mean_difference'], 2, sign=True)} dB [{number(row['ci_low'], 2)}, {number(row['ci_high'], 2)}] against "
        f"“{row['baseline']}”"
        for row in report.comparisons
        if row["metric"] == key and row["baseline"] != INPUT
    ]
    return f"; {', '.join(differences)} (mean and 95 % interval)" if differences else ""


def claim_counts(claims: Sequence[Mapping[str, str]]) -> str:
    """How many of the paper's claims were reproduced, in one line."""
    if not claims:
        return ""
    verdicts = [claim["verdict"] for claim in claims]
    order = ["reproduced", "not reproduced", "opposite", "cannot be said"]
    kinds = [kind for kind in order if kind in verdicts] + sorted(set(verdicts) - set(order))
    words = {"opposite": "came out the other way round"}
    parts = [f"{verdicts.count(kind)} {words.get(kind, kind)}" for kind in kinds]
    return f"Here, of {len(claims)} claims of the paper: {', '.join(parts)}."


# --- pages -----------------------------------------------------------------------------------------------------------------


def render_demo(report: DemoReport, path: Path) -> None:
    """Write the page of one scan. The file appears whole or not at all."""
    shown = _shown_slices(report.slices)
    crops = {view.name: find_crops(view.normal_dose, pixel_mm=view.pixel_mm) for view in shown}
    main = max(shown, key=lambda view: (len(crops[view.name]), sum(place.score for place in crops[view.name][:1])))
    box = body_box([view.normal_dose for view in shown])
    noise = np.concatenate([(view.low_dose - view.normal_dose)[box].ravel() for view in shown])
    difference = difference_window(noise)
    _write_page(
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
        total_s=sum(value for value in report.timings_s.values() if math.isfinite(value)),
    )


def render_study(report: StudyReport, path: Path) -> None:
    """Write the page of a study. The file appears whole or not at all."""
    proposed = report.proposed
    methods = list(dict.fromkeys(method for row in report.table for method in row.values))
    networks = [str(arm["name"]) for arm in report.arms]
    bars = bar_figure(report.table, per_patient=report.per_patient, proposed=proposed, arms=networks)
    plots = {
        "bars": svg_text(bars, "bars"),
        "front": svg_text(front_figure(report.table, proposed=proposed, arms=networks), "front"),
        "curves": svg_text(curve_figure(report.curves, proposed=proposed), "curves") if report.curves else "",
    }
    _write_page(
        path,
        "study.html.j2",
        report=report,
        counts=claim_counts(report.claims),
        verdict=study_verdict(report),
        plots={name: Markup(svg) for name, svg in plots.items()},  # ours, and matplotlib escapes the names in it
        methods=methods,
        rows=[_study_row(row, methods, networks) for row in report.table if not is_detail(row.key)],
        detail_rows=[_study_row(row, methods, networks) for row in report.table if is_detail(row.key)],
        comparisons=_comparison_groups(report),
        out_of_reach=_out_of_reach(report),
        crops=[_study_crops(crop) for crop in report.crops],
    )


def _shown_slices(slices: Sequence[SliceView]) -> list[SliceView]:
    indices = np.linspace(0, len(slices) - 1, min(len(slices), MAX_SLICES)).round().astype(int)
    return [slices[index] for index in indices]


def _summary(report: DemoReport) -> list[dict[str, str]]:
    """The four numbers of the page's head: name, before, after, note."""
    before, after, noise = report.measures[INPUT], report.measures[OUTPUT], report.noise_sd_hu
    rows = []
    if INPUT in noise and OUTPUT in noise:
        note = f"normal dose: {number(noise.get(REFERENCE), 1)}"
        rows.append({"name": "Noise, HU", "before": number(noise[INPUT], 1), "after": number(noise[OUTPUT], 1), "note": note})
    for name in ("psnr_db", "hf_ratio", "hf_coherence"):
        key = _first(after, name, "fine_texture", "full") if name.startswith("hf") else _first(after, name)
        if key is not None:
            measure, place = measure_of(key)
            decimals = 1 if name == "psnr_db" else 2
            label = measure.label + (f", {measure.unit}" if measure.unit else "")
            values = {"before": number(before.get(key), decimals), "after": number(after[key], decimals)}
            note = f"{place}; ideal: {measure.ideal}" if measure.ideal else place
            rows.append({"name": label, **values, "note": note})
    return rows


def _tile(gray: NDArray[np.uint8], label: str, note: str = "") -> dict[str, Any]:
    return {"src": png_uri(gray), "label": label, "note": note, "rows": gray.shape[0], "columns": gray.shape[1]}


def _slider(view: SliceView, box: tuple[slice, slice]) -> dict[str, Any]:
    before, after = (_tile(SOFT_WINDOW.to_gray(image[box]), label) for image, label in _low_and_denoised(view))
    return {"before": before, "after": after, "name": view.name, "window": _window_words(SOFT_WINDOW)}


def _low_and_denoised(view: SliceView) -> list[tuple[NDArray[np.floating], str]]:
    return [(view.low_dose, INPUT), (view.denoised, OUTPUT)]


def _slice_panel(view: SliceView, box: tuple[slice, slice], difference: DisplayWindow) -> dict[str, Any]:
    """Two rows of four images: soft-tissue and lung window, each with a difference that should be free of anatomy."""
    images = [(view.normal_dose, REFERENCE), *_low_and_denoised(view)]
    rows = [
        [_tile(window.to_gray(image[box]), label, _window_words(window)) for image, label in images]
        for window in (SOFT_WINDOW, LUNG_WINDOW)
    ]
    removed = difference.to_gray((view.denoised - view.low_dose)[box])
    added = difference.to_gray((view.normal_dose - view.low_dose)[box])
    half = f"±{difference.width / 2:g} HU"
    rows[0].append(_tile(removed, "what was removed", f"denoised − low dose, {half}"))
    rows[1].append(_tile(added, "what low dose had added", f"normal − low dose, {half}"))
    width_mm = rows[0][0]["columns"] * view.pixel_mm
    return {
        "name": view.name,
        "rows": rows,
        "bar_percent": 100 * 50 / width_mm,
    }


def _crop_panel(view: SliceView, place: CropPlace, difference: DisplayWindow) -> dict[str, Any]:
    images = [(view.normal_dose, REFERENCE), *_low_and_denoised(view)]
    tiles = [_tile(place.window.to_gray(resized(place.of(image), CROP_FACTOR)), label) for image, label in images]
    removed = resized(place.of(view.denoised - view.low_dose), CROP_FACTOR)
    tiles.append(_tile(difference.to_gray(removed), "what was removed", f"±{difference.width / 2:g} HU"))
    return {
        "name": place.name,
        "tiles": tiles,
        "window": _window_words(place.window),
        "side_mm": place.side * view.pixel_mm,
        "bar_percent": 100 * 10 / (place.side * view.pixel_mm),
    }


def _overview(view: SliceView, box: tuple[slice, slice], places: Sequence[CropPlace]) -> dict[str, Any]:
    shown = view.normal_dose[box]
    marks = [
        {"number": index, "x": place.column - box[1].start, "y": place.row - box[0].start, "side": place.side}
        for index, place in enumerate(places, start=1)
    ]
    return {**_tile(OVERVIEW_WINDOW.to_gray(shown), REFERENCE), "marks": marks, "name": view.name}


def _window_words(window: DisplayWindow) -> str:
    return f"window {_minus(f'{window.centre:g}')}/{window.width:g} HU"


def _nps_plots(nps: Mapping[str, tuple[NDArray, NDArray]]) -> list[Markup]:
    if not nps:
        return []
    ordered = {name: nps[name] for name in (REFERENCE, INPUT, OUTPUT) if name in nps} | dict(nps)
    return [Markup(svg_text(nps_figure(ordered), "nps")), Markup(svg_text(nps_shape_figure(ordered), "shape"))]


def _measure_groups(measures: Mapping[str, Mapping[str, float]], *, details: bool) -> list[dict[str, Any]]:
    """Rows of a table of measures under captions: those that matter first, or the others."""
    keys = [key for key in dict.fromkeys([*measures[OUTPUT], *measures[INPUT]]) if is_detail(key) == details]
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
    if before is None or after is None or not (_known(before) and _known(after)) or not better:
        return ""
    cost = {"higher": lambda v: -v, "lower": lambda v: v, "zero": abs, "one": lambda v: abs(math.log(max(v, 1e-9)))}[better]
    if number(before, decimals) == number(after, decimals):
        return "same"
    if better == "zero" and max(abs(before), abs(after)) < HARMLESS_SHIFT_HU:
        return "harmless"
    return "better" if cost(after) < cost(before) else "worse"


def _study_row(row: StudyRow, methods: Sequence[str], networks: Sequence[str]) -> dict[str, Any]:
    """A row of the table of results; the best of the networks is marked, and free competitors are not in the race."""
    measure, _ = measure_of(row.key)
    known = {arm: values[0] for arm, values in row.values.items() if arm in networks and _known(values[0])}
    cost = {"higher": lambda v: -v, "lower": abs, "one": lambda v: abs(math.log(max(v, 1e-9)))}[row.better]
    best = min((round(cost(value), 12) for value in known.values()), default=math.nan)
    cells = []
    for method in methods:
        if method not in row.values:
            cells.append({"arm": method, "mean": "–", "spread": "", "best": False})
            continue
        mean, sd, n = row.values[method]
        spread = f"± {number(sd, measure.decimals)}, n = {n}" if _known(sd) else f"n = {n}"
        is_best = method in known and round(cost(mean), 12) == best
        cells.append({"arm": method, "mean": number(mean, measure.decimals), "spread": spread, "best": is_best})
    words = {"higher": "higher is better", "lower": "lower is better", "one": "1 is best"}[row.better]
    return {"label": row.label, "words": words, "cells": cells, "why_missing": missing_because(row.key), "key": row.key}


def _comparison_groups(report: StudyReport) -> list[dict[str, Any]]:
    labels = {row.key: row.label for row in report.table}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in report.comparisons:
        decimals = measure_of(row["metric"])[0].decimals
        shown = {name: number(row[name], decimals, sign=True) for name in ("mean_difference", "ci_low", "ci_high")}
        groups.setdefault(row["metric"], []).append({**row, **shown})
    return [{"label": labels.get(metric, metric), "rows": rows} for metric, rows in groups.items()]


def _out_of_reach(report: StudyReport) -> str:
    """One sentence if no comparison can be significant, were all patients to agree; else nothing."""
    from finegrain.evaluate.stats import ALPHA, smallest_wilcoxon_p  # slow to load, and no page of one scan needs it

    n_patients = max((int(row["n"]) for row in report.comparisons), default=0)
    n_baselines = max(Counter(row["metric"] for row in report.comparisons).values(), default=0)
    smallest = smallest_wilcoxon_p(n_patients)
    if not n_patients or smallest * n_baselines < ALPHA:
        return ""
    text = f"With {n_patients} patient{'' if n_patients == 1 else 's'} a two-sided Wilcoxon test cannot fall below "
    text += f"p = {p_value(smallest)}"
    if n_baselines > 1:
        text += f", {p_value(min(1.0, smallest * n_baselines))} after Holm over {n_baselines} baselines"
    return text + ", whatever the data. No star is printed."


def _study_crops(crop: CropView) -> dict[str, Any]:
    window, errors = crop.display_window(), crop.errors()
    error_window = difference_window(next(iter(errors.values()), np.zeros(1)))
    tiles = []
    for name, hu in crop.images.items():
        tile = _tile(window.to_gray(resized(hu, CROP_FACTOR)), name)
        error = png_uri(error_window.to_gray(resized(errors[name], CROP_FACTOR))) if name in errors else ""
        tiles.append({**tile, "error": error})
    columns = next(iter(crop.images.values())).shape[1] if crop.images else 1
    return {
        "name": crop.name,
        "tiles": tiles,
        "window": _window_words(window),
        "error_hu": f"{error_window.width / 2:g}",
        "bar_percent": 100 * 10 / (columns * crop.pixel_mm),
    }


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


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("finegrain"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent, "p_value": p_value, "seconds": seconds, "scaled": scaled}
    return environment


def _write_page(path: Path, template: str, **values: Any) -> None:
    html = _environment().get_template(template).render(**values)
    write_whole(path, html)
