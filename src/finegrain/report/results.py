"""The page of results: methods against a reference, and for a study its networks and the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from markupsafe import Markup

from finegrain.figures import (
    BONE_WINDOW,
    CSS_COLOURS,
    LUNG_WINDOW,
    REFERENCE,
    SOFT_WINDOW,
    BandValue,
    Detection,
    Look,
    Marks,
    Method,
    StudyRow,
    band_coherence_figure,
    band_ratio_figure,
    bar_panel,
    curve_figure,
    curves_of,
    detectability_figure,
    figure_rows,
    front_figure,
    method_looks,
    nps_figure,
    nps_shape_figure,
    pick_row,
    svg_text,
)
from finegrain.report.contents import EvaluationReport, StudyReport, WorstCase
from finegrain.report.page import write_page
from finegrain.report.verdicts import claim_counts, out_of_reach, results_verdict, significant, warnings_of
from finegrain.report.viewer import places_of
from finegrain.report.words import bands_in, is_known, label_of, measure_of, missing_because, number, table_of

WORST_BYTES = 1_500_000
"""The share of a page that crops of worst cases may take; a default, taken from nowhere."""

BETTER_WORDS = {"higher": "higher is better", "lower": "lower is better", "one": "1 is best", "zero": "0 is best", "": ""}
COSTS: Mapping[str, Callable[[float], float]] = {
    "higher": lambda value: -value,
    "lower": abs,
    "zero": abs,
    "one": lambda value: abs(math.log(max(value, 1e-9))),
}
"""What is least for the best value."""
UNIFORM_WORDS = {"hf_ratio": "low: noise removed", "hf_coherence": "agreement with the normal dose's noise"}
"""What these say where there is no texture: neither way is better."""


def render_evaluation(report: EvaluationReport, path: Path) -> None:
    """Write the page of an evaluation. The file appears whole or not at all."""
    _write_results(path, report, arms=(), claims=(), counts="", curves=[])


def render_study(report: StudyReport, path: Path) -> None:
    """Write the page of a study. The file appears whole or not at all."""
    looks = method_looks(report.shown_methods(), report.proposed)
    curves = _drawn({"curves": curve_figure(report.curves, looks=looks)}) if report.curves else []
    _write_results(path, report, arms=report.arms, claims=report.claims, counts=claim_counts(report.claims), curves=curves)


def _write_results(
    path: Path,
    report: EvaluationReport,
    *,
    arms: Sequence[Mapping[str, Any]],
    claims: Sequence[Mapping[str, str]],
    counts: str,
    curves: Sequence[Markup],
) -> None:
    methods = report.shown_methods()
    looks = method_looks(methods, report.proposed)
    marks = significant(report.comparisons)
    bands = _bands(report)
    tables: dict[str, list[dict[str, Any]]] = {"results": [], "tissues": [], "regions": [], "details": []}
    for row in (row for row in report.table if table_of(row.key) in tables):
        tables[table_of(row.key)].append(_result_row(row, methods, marks))
    crops = [crop for crop in report.crops if crop.images]
    places, worst_places = places_of(crops), _worst_places(report.worst)
    write_page(
        path,
        "results.html.j2",
        report=report,
        arms=arms,
        claims=claims,
        headline=counts or report.title,
        is_study=bool(arms),
        verdict=results_verdict(report),
        methods=methods,
        tables=tables,
        legend=_legend(methods, looks),
        legend_of_noise=_legend(methods, looks, {*report.nps, *bands}),
        legend_of_lesions=_legend(methods, looks, {name for each in report.detectability.values() for name in each}),
        legend_of_curves=_legend(methods, looks, {str(arm["name"]) for arm in arms}),
        bars=_bar_panels(report, methods, marks),
        n_marks=len({(key, name) for key, name in marks if key in {row.key for row in figure_rows(report.table)}}),
        front=_front_panels(report, methods),
        noise=_noise_panels(report, looks),
        bands=_band_panels(bands, looks),
        has_truth=any(value[4] is not None for values in bands.values() for value in values),
        detectability=_detectability(report, looks),
        curves=curves,
        comparisons=_comparison_groups(report, marks, free=False),
        free_comparisons=_comparison_groups(report, marks, free=True),
        generalisation=_generalisation(report),
        out_of_reach=out_of_reach(report.comparisons),
        warnings=warnings_of(report.comparisons),
        windows=(SOFT_WINDOW, LUNG_WINDOW, BONE_WINDOW),
        places=places,
        n_hidden_places=len(crops) - len(places),
        worst=[_worst_row(case) for case in report.worst],
        worst_places=worst_places,
        n_hidden_worst=sum(case.crop is not None for case in report.worst) - len(worst_places),
        has_curves=bool(curves_of(methods)),
    )


# --- figures ---------------------------------------------------------------------------------------------------------------


def _drawn(figures: Mapping[str, Any]) -> list[Markup]:
    return [Markup(svg_text(figure, name)) for name, figure in figures.items()]  # ours, and matplotlib escapes the names in it


def _bar_panels(report: EvaluationReport, methods: Sequence[Method], marks: Marks) -> list[Markup]:
    return _drawn(
        {
            f"bars-{index}": bar_panel(
                row, methods=methods, proposed=report.proposed, dots=report.per_patient.get(row.key), marks=marks
            )
            for index, row in enumerate(figure_rows(report.table))
        }
    )


def _front_panels(report: EvaluationReport, methods: Sequence[Method]) -> list[Markup]:
    if pick_row(report.table, "psnr_db") is None:
        return []
    return _drawn(
        {
            f"front-{against}": front_figure(report.table, against=against, methods=methods, proposed=report.proposed)
            for against in ("hf_ratio", "hf_coherence")
            if pick_row(report.table, against) is not None
        }
    )


def _noise_panels(report: EvaluationReport, looks: Mapping[str, Look]) -> list[Markup]:
    if not report.nps:
        return []
    return _drawn({"nps": nps_figure(report.nps, looks=looks), "shape": nps_shape_figure(report.nps, looks=looks)})


def _bands(report: EvaluationReport) -> dict[str, Sequence[BandValue]]:
    """The bands that were given, or those of the table for methods that are no member of a curve."""
    if report.bands:
        return {name: values for name, values in report.bands.items() if values}
    curves = curves_of(report.shown_methods()).values()
    on_curves = {member.name for members in curves for member in members}
    names = [method.name for method in report.shown_methods() if method.name not in on_curves]
    means = {name: {row.key: row.values[name][0] for row in report.table if name in row.values} for name in names}
    found = {name: bands_in(measures) or bands_in(measures, "full") for name, measures in means.items()}
    return {name: values for name, values in found.items() if values}


def _band_panels(bands: Mapping[str, Sequence[BandValue]], looks: Mapping[str, Look]) -> list[Markup]:
    if not bands:
        return []
    return _drawn({"ratio": band_ratio_figure(bands, looks=looks), "coherence": band_coherence_figure(bands, looks=looks)})


def _detectability(report: EvaluationReport, looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    """The plot of d′ and its table for each observer: one row per lesion, one column per method."""
    return [
        {
            "observer": observer,
            "what": OBSERVERS.get(observer, ""),
            "plot": _drawn({f"detectability, {observer}": detectability_figure(of_method, looks=looks)})[0],
            "methods": list(of_method),
            "rows": _lesion_rows(of_method),
        }
        for observer, of_method in report.detectability.items()
        if any(of_method.values())
    ]


def _lesion_rows(of_method: Mapping[str, Sequence[Detection]]) -> list[dict[str, Any]]:
    found = {name: {one.lesion: one for one in each} for name, each in of_method.items()}
    rows = []
    for lesion in dict.fromkeys(lesion for each in found.values() for lesion in each):
        cells = [each.get(lesion, Detection(lesion, math.nan, math.nan, math.nan)) for each in found.values()]
        rows.append(
            {
                "lesion": lesion,
                "cells": [
                    {
                        "d_prime": number(one.d_prime, 2),
                        "range": f"{number(one.low, 2)} to {number(one.high, 2)}",
                        "gain": one.gain and [number(value, 2, sign=True) for value in one.gain],
                        "certain": one.is_certain,
                    }
                    for one in cells
                ],
            }
        )
    return rows


OBSERVERS = {
    "CHO": "A channelised Hotelling observer undoes what correlations of noise can be undone: it asks what information is left.",
    "NPWE": "A matched filter behind an eye filter (50 cm from the screen) is disturbed by any noise the eye sees, as a reader is.",
}
"""What each observer asks, by the name that a study gives it."""

MARKER_SHAPES = {
    "o": '<circle cx="14" cy="6" r="4"/>',
    "s": '<rect x="10.2" y="2.2" width="7.6" height="7.6"/>',
    "^": '<path d="M14 1.5 18.5 10h-9z"/>',
    "v": '<path d="M14 10.5 18.5 2h-9z"/>',
    "D": '<path d="M14 1 19 6 14 11 9 6z"/>',
    "P": '<path d="M12.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"/>',
    "X": '<path d="m11 1.5 3 3 3-3 1.5 1.5-3 3 3 3-1.5 1.5-3-3-3 3-1.5-1.5 3-3-3-3z"/>',
}
"""Matplotlib's markers as SVG, for a legend that all plots of a page share."""


def _legend(methods: Sequence[Method], looks: Mapping[str, Look], names: AbstractSet[str] = frozenset()) -> list[dict[str, Any]]:
    """Names and swatches of these methods and the reference, of all methods if none is named; a curve's members share one."""
    curves = curves_of(methods)
    on_curves = {member.name for members in curves.values() for member in members}
    entries = [(method.name, looks[method.name]) for method in methods if method.name not in on_curves]
    entries += [(f"{family}, no training", looks[members[0].name]) for family, members in curves.items()]
    entries.append((REFERENCE, looks[REFERENCE]))
    return [{"name": name, "swatch": _swatch(look)} for name, look in entries if name in names or not names]


def _swatch(look: Look) -> Markup:
    colour = f"var({CSS_COLOURS[look.colour]}, {look.colour})"
    dashes = " ".join(f"{length * 1.2:g}" for length in look.line[1]) if isinstance(look.line, tuple) else ""
    line = f'<path d="M0 6h28" fill="none" stroke-width="1.6"{f" stroke-dasharray={chr(34)}{dashes}{chr(34)}" if dashes else ""}/>'
    marker = MARKER_SHAPES.get(look.marker, "")
    fill = "currentColor" if look.filled else "var(--paper)"
    style = f'style="color:{colour}" stroke="currentColor" fill="{fill}"'
    return Markup(f'<svg viewBox="0 0 28 12" width="28" height="12" aria-hidden="true" {style}>{line}{marker}</svg>')


# --- tables ----------------------------------------------------------------------------------------------------------------


def _result_row(row: StudyRow, methods: Sequence[Method], marks: Marks) -> dict[str, Any]:
    """A row of a table; the best of networks and candidates is bold, and free competitors are not in the race."""
    measure, _ = measure_of(row.key)
    name, _, place = row.key.removesuffix("]").partition("[")
    is_judged = place != "uniform" or name not in UNIFORM_WORDS
    note = BETTER_WORDS[row.better] if is_judged else UNIFORM_WORDS[name]
    cost = COSTS.get(row.better if is_judged else "")
    racing = {
        method.name: row.values[method.name][0]
        for method in methods
        if method.kind in ("arm", "candidate") and is_known(row.values.get(method.name, (None,))[0])
    }
    best = min((round(cost(value), 12) for value in racing.values()), default=math.nan) if cost else math.nan
    counts = {n for mean, _, n in row.values.values() if is_known(mean)}
    same_n = len(counts) == 1
    words = [*([note] if note else []), *([f"n = {counts.pop()}"] if same_n else [])]
    cells = []
    for method in methods:
        if method.name not in row.values:
            cells.append({"method": method, "mean": "–", "spread": "", "best": False, "mark": False})
            continue
        mean, sd, n = row.values[method.name]
        spread = [f"± {number(sd, measure.decimals)}"] if is_known(sd) else []
        cells.append(
            {
                "method": method,
                "mean": number(mean, measure.decimals),
                "spread": ", ".join(spread if same_n else [*spread, f"n = {n}"]),
                "best": cost is not None and len(racing) > 1 and method.name in racing and round(cost(mean), 12) == best,
                "mark": (row.key, method.name) in marks,
            }
        )
    return {
        "key": row.key,
        "label": row.label,
        "words": "; ".join(words),
        "cells": cells,
        "why_missing": missing_because(row.key),
    }


def _generalisation(report: EvaluationReport) -> dict[str, Any]:
    """The gain in PSNR of each method in each condition, and which methods there are; empty if nothing was varied."""
    conditions = report.generalisation if isinstance(report, StudyReport) else ()
    if not conditions:
        return {}
    names = [m.name for m in report.shown_methods() if any(is_known(one["gain_db"].get(m.name)) for one in conditions)]
    rows = [
        {
            **one,
            "input": number(one["input_psnr_db"], 2),
            "cells": [
                {
                    "name": name,
                    "gain": number(one["gain_db"].get(name), 2, sign=True),
                    "coherence": number(one["coherence"].get(name), 3),
                    "worse": is_known(one["gain_db"].get(name)) and one["gain_db"][name] < 0,
                }
                for name in names
            ],
        }
        for one in conditions
    ]
    return {"methods": names, "rows": rows}


def _comparison_groups(report: EvaluationReport, marks: Marks, *, free: bool) -> list[dict[str, Any]]:
    """Comparisons by measure: with the methods that compete, or with the free ones."""
    are_free = {method.name for method in report.shown_methods() if method.kind == "free"}
    labels = {row.key: row.label for row in report.table}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in (row for row in report.comparisons if (row["baseline"] in are_free) == free):
        decimals = measure_of(row["metric"])[0].decimals
        low, high, kind = row["interval"]
        groups.setdefault(row["metric"], []).append(
            {
                **row,
                "difference": number(row["mean_difference"], decimals, sign=True),
                "interval": f"{number(low, decimals, sign=True)} to {number(high, decimals, sign=True)} ({kind})",
                "mark": (row["metric"], row["baseline"]) in marks,
            }
        )
    return [{"label": labels.get(metric, label_of(metric)), "rows": rows} for metric, rows in groups.items()]


def _worst_row(case: WorstCase) -> dict[str, str]:
    decimals = measure_of(case.key)[0].decimals
    return {
        "patient": case.patient,
        "slice": case.slice,
        "method": case.method,
        "measure": label_of(case.key),
        "value": number(case.value, decimals),
    }


def _worst_places(cases: Sequence[WorstCase]) -> list[dict[str, Any]]:
    shown = [(case, case.crop) for case in cases if case.crop is not None and case.crop.images]
    labels = [f"{case.patient}, {case.slice}: {case.method}" for case, _ in shown]
    return places_of([crop for _, crop in shown], labels=labels, most_bytes=WORST_BYTES)
