"""All that a study found, as plain data: means over patients, comparisons, generalisation, worst slices, spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from finegrain.config import Arm, StudyConfig
from finegrain.evaluate.power import plans_in_words
from finegrain.evaluate.run import by_patient, spectra_by_patient, spectral_by_patient
from finegrain.evaluate.seeds import compare_over_seeds
from finegrain.evaluate.spectra import on_common_frequencies
from finegrain.evaluate.stats import PairedComparison, compare_with_each, equivalence_with_each
from finegrain.figures import INPUT
from finegrain.pairs.manifest import Pair, read_manifest
from finegrain.pairs.summary import verdicts_table
from finegrain.study.claims import comparators, in_words, judge_claims, plain
from finegrain.study.measuring import Measured
from finegrain.study.methods import Method, TestSet

Better = Literal["higher", "lower", "one"]

FEW_PATIENTS, FEW_SLICES = 20, 5000
"""With fewer test patients than these a study shows that it runs and no more; with fewer training slices, how networks rank that
saw as few. Both ours."""

WORST_OF_PROPOSED = 4
"""Slices on which the proposed network did worst that are shown; of each other network, one."""

PLANNED_DB = 0.2
"""Difference in PSNR for which the number of patients is estimated."""

EQUIVALENT_DB = 0.1
"""Difference in PSNR that is taken for none when two methods are called equivalent; ours."""


def collect_results(
    config: StudyConfig,
    methods: Sequence[Method],
    facts: Mapping[Method, Mapping[str, Any]],
    sets: tuple[TestSet, ...],
    measured: Sequence[Measured],
    detected: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Everything that was found, ready for JSON."""
    own = [one for one in measured if not one.set_name]
    by_seed = {seed: _found(own, seed) for seed in config.all_seeds}
    found = _mean_over_seeds(list(by_seed.values()))
    psnr = f"psnr_db[{config.protocols[0]}]"
    compared, against_each, equivalent_words = _against_each(config, found, by_seed, psnr)
    paper = {key: {name: each[name] for name in comparators(config)} for key, each in compared.items()}
    contender, contender_words = _contender(config, found, by_seed, psnr)
    return {
        "title": config.title,
        "scale_note": scale_note(config, list(sets[0].pairs)),
        "splits": {
            side: {
                "patients": sorted({pair.patient for pair in sets[0].pairs if pair.split == side}),
                "slices": sum(pair.split == side for pair in sets[0].pairs),
            }
            for side in ("train", "validation", "test")
        },
        "seeds": list(config.all_seeds),
        **against_each,
        "contender": contender,
        "methods": [dict(facts[method]) for method in methods],
        "measures": {name: {key: _summary(name, key, found, by_seed) for key in metrics} for name, metrics in found.items()},
        "per_patient": found,
        "claims": judge_claims(config, found, paper, against_each["over_seeds"]),
        "plan": plans_in_words(paper.get(psnr, {}), difference=PLANNED_DB, unit=" dB") + equivalent_words + contender_words,
        "regions": _by_group(config, own, lambda pair: pair.region),
        "doses": _by_group(config, own, dose_in_words),
        "generalisation": _generalisation(config, sets, measured),
        "nps": _spectra(config, own),
        "detectability": dict(detected),
        "worst": _worst(config, own),
        "quality_control": verdicts_table(read_manifest(sets[0].folder))[1],
    }


def _found(measured: Iterable[Measured], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Method → metric → patient → value, of one seed and of what has none."""
    mine = [one for one in measured if one.seed in (None, seed)]
    found = by_patient(one.row() for one in mine if one.metrics)
    spectra = [spectrum for one in mine if (spectrum := one.spectrum()) is not None]
    for method, metrics in spectral_by_patient(spectra).items():
        found[method] |= metrics
    return found


def _mean_over_seeds(each: Sequence[dict[str, dict[str, dict[str, float]]]]) -> dict[str, dict[str, dict[str, float]]]:
    """The mean of each value over the seeds that a method has; the first seed has every method."""
    return {
        method: {
            key: {
                patient: float(np.mean([found[method][key][patient] for found in each if method in found])) for patient in patients
            }
            for key, patients in metrics.items()
        }
        for method, metrics in each[0].items()
    }


def _summary(name: str, key: str, found: Mapping[str, Any], by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean ± SD over patients, each the mean over seeds; and the mean over patients of each seed."""
    values = np.array(list(found[name][key].values()))
    known = values[np.isfinite(values)]
    seeds = [np.array(list(one[name][key].values())) for one in by_seed.values() if name in one]
    return {
        "mean": float(known.mean()) if len(known) else math.nan,
        "sd": float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        "n_patients": len(known),
        "seed_means": [float(one[np.isfinite(one)].mean()) if np.isfinite(one).any() else math.nan for one in seeds],
    }


def compared_measures(config: StudyConfig) -> dict[str, Better]:
    """The measures of the paper's claims and those that keep them honest, and which way each is better."""
    measures: dict[str, Better] = {}
    for protocol in config.protocols:
        measures |= {f"psnr_db[{protocol}]": "higher", f"ssim[{protocol}]": "higher"}
    return measures | {
        f"psnr_db[{config.protocols[0]},fine_texture]": "higher",
        "hf_ratio[full]": "one",
        "hf_ratio[fine_texture]": "one",
        "hf_consistency[fine_texture]": "higher",
        "hf_coherence[fine_texture]": "higher",
        "hf_coherence_truth[fine_texture]": "higher",
        "texture_index": "lower",
        "nps_log_distance": "lower",
    }


def _others(config: StudyConfig, found: Mapping[str, Any]) -> list[str]:
    """What the proposed network is compared with beyond the paper: a family of its own for Holm."""
    return [name for name in found if name not in (INPUT, config.proposed, *comparators(config))]


def _compare(config: StudyConfig, found: Mapping[str, Any], key: str) -> dict[str, PairedComparison]:
    """The proposed network against each other method, by patient; Holm over the paper's comparators, and over the others."""
    patients = sorted(found[config.proposed][key])

    def values(method: str) -> list[float]:
        return [found[method].get(key, {}).get(patient, math.nan) for patient in patients]

    compared: dict[str, PairedComparison] = {}
    for family in (comparators(config), _others(config, found)):
        compared |= compare_with_each(values(config.proposed), {name: values(name) for name in family})
    return compared


def _against_each(
    config: StudyConfig, found: Mapping[str, Any], by_seed: Mapping[int, Any], psnr: str
) -> tuple[dict[str, dict[str, PairedComparison]], dict[str, Any], list[str]]:
    """The proposed network against each other method: the comparisons, all of it ready for JSON, and who is its equal in words."""
    compared = {key: _compare(config, found, key) for key in compared_measures(config) if key in found[config.proposed]}
    equivalence, equivalent_words = _equivalence(config, found, psnr)
    against_each = {
        "proposed": config.proposed,
        "comparisons": plain(compared),
        "families": {"paper": comparators(config), "others": _others(config, found)},
        "over_seeds": _over_seeds(config, by_seed),
        "equivalence": equivalence,
    }
    return compared, against_each, equivalent_words


def _contender(
    config: StudyConfig, found: Mapping[str, Any], by_seed: Mapping[int, Any], psnr: str
) -> tuple[dict[str, Any] | None, list[str]]:
    """The contender against each other method, as if it were proposed; and in words."""
    if config.contender is None:
        return None, []
    turned = config.model_copy(update={"proposed": config.contender, "contender": config.proposed})
    compared, against_each, _ = _against_each(turned, found, by_seed, psnr)
    arms = {arm.name for arm in config.arms}
    words = [
        f"“{config.contender}” against “{name}” in PSNR: {in_words(one, unit=' dB')}; {one.verdict()}."
        for name, one in compared[psnr].items()
        if name in arms
    ]
    return against_each, words


def _equivalence(config: StudyConfig, found: Mapping[str, Any], key: str) -> tuple[dict[str, Any], list[str]]:
    """Whether the proposed network and each other arm have the same PSNR within a margin, by two one-sided tests over patients."""
    ours = found[config.proposed]
    patients = sorted(ours[key])
    others = [arm.name for arm in config.arms if arm.name != config.proposed]
    values = {name: [found[name].get(key, {}).get(patient, math.nan) for patient in patients] for name in others}
    tested, words = equivalence_with_each([ours[key][patient] for patient in patients], values, margin=EQUIVALENT_DB, unit=" dB")
    return {name: one.to_dict() for name, one in tested.items()}, words


def _over_seeds(config: StudyConfig, by_seed: Mapping[int, Any]) -> dict[str, dict[str, Any]]:
    """The paper's comparisons with the luck of the trainings in them; nothing for a single seed."""
    if len(by_seed) < 2:
        return {}

    def table(method: str, key: str, patients: list[str]) -> list[list[float]]:
        return [[found[method][key][patient] for found in by_seed.values()] for patient in patients]

    results: dict[str, dict[str, Any]] = {}
    first = next(iter(by_seed.values()))
    for key in compared_measures(config):
        if key in first[config.proposed]:
            patients = sorted(first[config.proposed][key])
            ours = table(config.proposed, key, patients)
            results[key] = {name: compare_over_seeds(ours, table(name, key, patients)).to_dict() for name in comparators(config)}
    return results


def scale_note(config: StudyConfig, pairs: list[Pair]) -> str:
    """How large the study is, and whether that is enough to tell which method is best."""
    count = {side: len({pair.patient for pair in pairs if pair.split == side}) for side in ("train", "validation", "test")}
    slices = {side: sum(pair.split == side for pair in pairs) for side in count}
    virtual = sum(pair.patient.startswith("virtual-") for pair in pairs)
    kind = "all are virtual" if virtual == len(pairs) else f"{virtual / len(pairs):.0%} of the slices are virtual"
    judgement = ""
    if count["test"] < FEW_PATIENTS:
        judgement = "This study is small: it shows that the experiment runs, not which method is best. "
    elif slices["train"] < FEW_SLICES:
        judgement = "Its networks saw few slices: more of them, or more steps, may rank the methods otherwise. "
    trained = {arm.name: len(config.seeds_of(arm)) for arm in config.all_arms if arm.kind != "classical"}
    fewer = [f"{name} {_times(n)}" for name, n in trained.items() if n < len(config.all_seeds)]
    times = _times(len(config.all_seeds)) + (f" ({', '.join(fewer)})" if fewer else "")
    luck = ", so the tests speak of patients, not of the luck of a training" if len(config.all_seeds) == 1 else ""
    return (
        f"{judgement}{slices['train']:,} training slices of {count['train']} patients, {slices['validation']:,} validation "
        f"slices of {count['validation']}, {slices['test']:,} test slices of {count['test']}; {kind}. Each network was trained "
        f"{times}, for {config.train.steps:,} steps of {config.train.batch} patches of {config.train.patch}² pixels{luck}. "
        "The paper used 52,000 pairs."
    )


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _group_means(
    config: StudyConfig, measured: Iterable[Measured], keys: Sequence[str]
) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Method → metric → (mean, SD, n) over patients, the patients' values being means over slices and seeds."""
    rows = [one.row() for one in measured if one.metrics]
    summary: dict[str, dict[str, tuple[float, float, int]]] = {}
    for method, metrics in by_patient(rows).items():
        for key in keys:
            values = np.array([value for value in metrics.get(key, {}).values() if np.isfinite(value)])
            if len(values):
                sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
                summary.setdefault(method, {})[key] = (float(values.mean()), sd, len(values))
    return summary


def _by_group(config: StudyConfig, measured: Sequence[Measured], group: Callable[[Pair], Any]) -> dict[str, Any]:
    """Group → method → metric → (mean, SD, n), for the measures that are compared."""
    keys = list(compared_measures(config))
    groups = sorted({str(group(one.pair)) for one in measured})
    return {name: _group_means(config, [one for one in measured if str(group(one.pair)) == name], keys) for name in groups}


def _generalisation(config: StudyConfig, sets: tuple[TestSet, ...], measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """How much each method gains over its input in each condition, seen in training or not: dose, kernel, scanner, other sets."""
    psnr = f"psnr_db[{config.protocols[0]}]"
    coherence = "hf_coherence[fine_texture]"
    trained = [pair for pair in sets[0].pairs if pair.split == "train"]
    own = [one for one in measured if not one.set_name]
    conditions: list[tuple[str, str, bool, list[Measured]]] = []
    factors: dict[str, Callable[[Pair], str]] = {
        "dose": dose_in_words,
        "kernel": lambda pair: pair.kernel or "unknown",
        "scanner": lambda pair: pair.manufacturer or "simulated",
    }
    for factor, value in factors.items():
        seen = {value(pair) for pair in trained}
        values = sorted({value(one.pair) for one in own})
        if len(values) > 1 or set(values) - seen:
            for each in values:
                conditions.append((factor, each, each in seen, [one for one in own if value(one.pair) == each]))
    for one in sets[1:]:
        conditions.append(("other pairs", one.name, False, [found for found in measured if found.set_name == one.name]))
    table = []
    for factor, condition, is_seen, found in conditions:
        means = _group_means(config, found, [psnr, coherence])
        start = means.get(INPUT, {}).get(psnr, (math.nan, math.nan, 0))
        table.append(
            {
                "factor": factor,
                "value": condition,
                "trained": is_seen,
                "patients": len({one.pair.patient for one in found}),
                "slices": len({one.pair.key for one in found}),
                "input_psnr_db": start[0],
                "gain_db": {name: each[psnr][0] - start[0] for name, each in means.items() if name != INPUT and psnr in each},
                "least_gain_db": _least_gains(found, psnr),
                "coherence": {name: each[coherence][0] for name, each in means.items() if coherence in each},
            }
        )
    return table


def dose_in_words(pair: Pair) -> str:
    """The dose fraction of a pair in percent."""
    return "unknown" if pair.dose_fraction is None else f"{pair.dose_fraction:.0%}"


def _gains(measured: Sequence[Measured], psnr: str) -> list[tuple[float, Measured]]:
    """Gain in PSNR over the input on each slice, of every method and seed."""
    known = [one for one in measured if one.metrics]
    before = {one.pair.key: one.metrics[psnr] for one in known if one.method == INPUT}
    return [(one.metrics[psnr] - before[one.pair.key], one) for one in known if one.method != INPUT]


def _least_gains(measured: Sequence[Measured], psnr: str) -> dict[str, float]:
    """Gain in PSNR over the input on the slice where it is least, of all seeds, by method."""
    least: dict[str, float] = {}
    for gain, one in _gains(measured, psnr):
        least[one.method] = min(gain, least.get(one.method, math.inf))
    return least


def _spectra(config: StudyConfig, measured: Sequence[Measured]) -> dict[str, Any]:
    """Mean radial noise power over patients, by method, on one axis."""
    spectra = [spectrum for one in measured if (spectrum := one.spectrum()) is not None]
    result: dict[str, Any] = {}
    for name, patients in spectra_by_patient(spectra).items():
        frequency, power = on_common_frequencies(list(patients.values()))
        result[name] = {"frequency_per_mm": frequency.tolist(), "power_hu2_mm2": power.mean(axis=0).tolist()}
    return result


def _worst(config: StudyConfig, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Slices with the least gain in PSNR over the input: of the proposed network several, of each other network one."""
    every = _gains(measured, f"psnr_db[{config.protocols[0]}]")
    networks = [arm.name for arm in config.arms if isinstance(arm, Arm)]
    found = []
    for name in sorted(networks, key=lambda name: name != config.proposed):
        gains = sorted((gain, one.pair.key, one.seed) for gain, one in every if one.method == name)
        shown: set[str] = set()
        for gain, key, seed in gains:
            if key not in shown and len(shown) < (WORST_OF_PROPOSED if name == config.proposed else 1):
                shown.add(key)
                found.append({"method": name, "seed": seed, "pair": key, "gain_db": gain})
    return found


def results_table(config: StudyConfig, results: Mapping[str, Any]) -> list[list[str]]:
    """The table of the command line: methods as rows."""
    first = f"psnr_db[{config.protocols[0]}]"
    columns = (first, "hf_ratio[fine_texture]", "hf_coherence[fine_texture]", "texture_index", "nps_log_distance")
    heading = [
        "mean ± SD over patients",
        f"PSNR [dB]\n{config.protocols[0]}",
        "HF ratio\nfine texture",
        "coherence\nfine texture",
        "texture\nindex",
        "NPS\ndistance",
    ]
    rows = []
    for method, measures in results["measures"].items():
        cells = []
        for key in columns:
            mean, sd = (measures.get(key, {}).get(name) for name in ("mean", "sd"))  # None where it is not defined
            cells.append("n/a" if mean is None else f"{mean:.2f}" + ("" if sd is None else f" ± {sd:.2f}"))
        rows.append([method, *cells])
    return [heading, *rows]
