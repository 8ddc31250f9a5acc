"""What the numbers of a page of results say, in sentences that they alone decide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from finegrain.figures import INPUT, Marks, StudyRow, pick_row
from finegrain.report.contents import EvaluationReport
from finegrain.report.words import is_known, label_of, measure_of, number, p_value, percent


def results_verdict(report: EvaluationReport) -> list[str]:
    """What was found, one sentence each, from the numbers alone."""
    return _proposed_sentences(report) if report.proposed else _leaders(report)


def _proposed_sentences(report: EvaluationReport) -> list[str]:
    sentences = []
    if psnr := pick_row(report.table, "psnr_db"):
        mean, _, n = psnr.values.get(report.proposed, (math.nan, math.nan, 0))
        start = psnr.values.get(INPUT, (math.nan,))[0]
        if is_known(mean) and is_known(start):
            text = f"On {n} test patient{'s' if n != 1 else ''}, “{report.proposed}” changes PSNR by "
            text += f"{number(mean - start, 2, sign=True)} dB against the low-dose input"
            sentences.append(text + _against_baselines(report, psnr.key) + ".")
    ratio, coherence = _energy_rows(report)
    if ratio and coherence and is_known(_mean(ratio, report.proposed)):
        text = f"It holds {percent(_mean(ratio, report.proposed))} of the normal dose's high-frequency energy, at a coherence of "
        text += number(_mean(coherence, report.proposed), 3)
        others = [m for m in report.shown_methods() if m.kind in ("arm", "candidate") and m.name != report.proposed]
        span = [value for value in (_mean(coherence, method.name) for method in others) if is_known(value)]
        if span:
            noun = ("network" if all(method.kind == "arm" for method in others) else "method") + ("s" if len(span) > 1 else "")
            text += f" (the other {noun}: {' to '.join(dict.fromkeys((number(min(span), 3), number(max(span), 3))))})"
        sentences.append(text + ".")
    return sentences


def _leaders(report: EvaluationReport) -> list[str]:
    """Who leads where no method was proposed; by the mean alone, and said so."""
    psnr, (ratio, coherence) = pick_row(report.table, "psnr_db"), _energy_rows(report)
    names = [method.name for method in report.shown_methods() if method.kind != "input"]
    sentences = []
    if psnr and (ranked := _ranked(psnr, names)):
        best, n = ranked[0], psnr.values[ranked[0]][2]
        text = f"On {n} patient{'s' if n != 1 else ''}, “{best}” has the highest mean PSNR, {number(_mean(psnr, best), 2)} dB "
        sentences.append(text + f"({measure_of(psnr.key)[1]}; input: {number(_mean(psnr, INPUT), 2)} dB).")
    if coherence and (ranked := _ranked(coherence, names)):
        best = ranked[0]
        text = f"“{best}” has the highest coherence of fine detail, {number(_mean(coherence, best), 3)}"
        if ratio and is_known(_mean(ratio, best)):
            text += f", at {percent(_mean(ratio, best))} of the normal dose's high-frequency energy"
        sentences.append(text + ". These are means; no test was made.")
    return sentences


def _energy_rows(report: EvaluationReport) -> tuple[StudyRow | None, StudyRow | None]:
    return (
        pick_row(report.table, "hf_ratio", "fine_texture", "full"),
        pick_row(report.table, "hf_coherence", "fine_texture", "full"),
    )


def _mean(row: StudyRow, method: str) -> float:
    return row.values.get(method, (math.nan,))[0]


def _ranked(row: StudyRow, names: Sequence[str]) -> list[str]:
    return sorted((name for name in names if is_known(_mean(row, name))), key=lambda name: -_mean(row, name))


def _against_baselines(report: EvaluationReport, key: str) -> str:
    chosen = {method.name for method in report.shown_methods() if method.kind in ("arm", "candidate")}
    differences, any_interval = [], False
    for row in (row for row in report.comparisons if row["metric"] == key and row["baseline"] in chosen):
        low, high, _ = row["interval"]
        any_interval |= is_known(low)
        interval = f" [{number(low, 2)}, {number(high, 2)}]" if is_known(low) else ""
        differences.append(f"{number(row['mean_difference'], 2, sign=True)} dB{interval} against “{row['baseline']}”")
    words = "mean and 95 % interval" if any_interval else "means alone"
    return f"; {', '.join(differences)} ({words})" if differences else ""


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


def significant(comparisons: Sequence[Mapping[str, Any]]) -> Marks:
    """(measure, baseline) where a star is allowed: Wilcoxon after Holm and paired t below 0.05, patients enough to reach it."""
    from finegrain.evaluate.stats import ALPHA, smallest_wilcoxon_p  # slow to load, and no page of one scan needs it

    return frozenset(
        (row["metric"], row["baseline"])
        for row in comparisons
        if all(is_known(row[name]) and row[name] < ALPHA for name in ("p_holm", "p_t"))
        and smallest_wilcoxon_p(int(row["n"])) * family_size(row, comparisons) < ALPHA
    )


def family_size(row: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]) -> int:
    """Over how many comparisons Holm went: what the row says, else all of its measure."""
    return int(row.get("n_comparisons") or Counter(one["metric"] for one in comparisons)[row["metric"]])


def out_of_reach(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """One sentence if no comparison can be significant, were all patients to agree; else nothing."""
    from finegrain.evaluate.stats import ALPHA, smallest_wilcoxon_p  # slow to load, and no page of one scan needs it

    n_patients = max((int(row["n"]) for row in comparisons), default=0)
    n_baselines = min((family_size(row, comparisons) for row in comparisons), default=0)
    smallest = smallest_wilcoxon_p(n_patients)
    if not n_patients or smallest * n_baselines < ALPHA:
        return ""
    text = f"With {n_patients} patient{'' if n_patients == 1 else 's'} a two-sided Wilcoxon test cannot fall below "
    text += f"p = {p_value(smallest)}"
    if n_baselines > 1:
        text += f", {p_value(min(1.0, smallest * n_baselines))} after Holm over {n_baselines} baselines"
    return text + ", whatever the data. No star is printed."


def warnings_of(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must be known before believing the comparisons: each warning once, with what it concerns."""
    concerned: dict[str, list[str]] = {}
    for row in comparisons:
        for warning in row.get("warnings") or ():
            concerned.setdefault(warning, []).append(f"{label_of(row['metric'])} against {row['baseline']}")
    return [
        f"{warning[0].upper()}{warning[1:]}"
        + (f" ({'; '.join(where)})." if len(where) <= 3 else f" ({len(where)} of {len(comparisons)} comparisons).")
        for warning, where in concerned.items()
    ]
