"""The paper's experiment from end to end: pairs → networks on equal terms → measures → statistics → figures → report."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.config import Arm, StudyConfig
from finegrain.denoise import Denoiser, torch_engine
from finegrain.errors import DataError
from finegrain.evaluate.run import Row, by_patient, evaluate_slice, summarise
from finegrain.evaluate.stats import PairedComparison, compare_with_each
from finegrain.figures import bar_figure, crop_figure, find_crops, save_png
from finegrain.frequency import Band
from finegrain.hu import HURange
from finegrain.networks.blocks import parameter_count
from finegrain.networks.skeleton import STRIDE, build_network, count_macs
from finegrain.pairs.build import build_pairs
from finegrain.pairs.manifest import Pair
from finegrain.provenance import versions, write_provenance
from finegrain.report import CropView, StudyReport, StudyRow, render_study
from finegrain.train.loop import FitResult, fit

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is finished, and how much there is."""

INPUT = "low dose"
"""Name of the untouched input among the methods."""

BLENDS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the input added back to the spatial-only network's output: a free way to high-frequency energy."""


@dataclass(frozen=True)
class StudyOutcome:
    """Where a study's results are, and its table as text; the first row is the heading."""

    report: Path
    results: Path
    table: list[list[str]]
    scale_note: str


def run_study(config: StudyConfig, out: Path, *, data_root: Path, workers: int, progress: Progress) -> StudyOutcome:
    """Do a study in `out`. What is finished there already (pairs, networks, measured slices) is not done again."""
    write_provenance(out, config)
    folder = out / "pairs"
    pairs = build_pairs(
        config.pairs, folder, data_root=data_root, workers=workers, progress=lambda done, n: progress("simulating pairs", done, n)
    )
    test = [pair for pair in pairs if pair.split == "test"]
    if not test:
        raise DataError("the study has no test patients; raise test_fraction or give a source the split 'test'")
    fits = {arm.name: _train(arm, config, pairs, folder, out, progress) for arm in config.arms}
    timings = _denoise_all(fits, test, folder, out, progress)
    rows = _measure_all(config, test, folder, out, workers=workers, progress=progress)
    results = _results(config, pairs, fits, timings, rows)
    path = out / "results.json"
    path.write_text(json.dumps(_finite(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report = out / "report.html"
    content = _report(config, results, fits, test, folder, out)
    render_study(content, report)
    arms = [arm.name for arm in config.arms]
    save_png(
        bar_figure(content.table, per_patient=content.per_patient, proposed=config.proposed, arms=arms),
        out / "figure-1-measures.png",
    )
    save_png(crop_figure(content.crops), out / "figure-2-crops.png")
    return StudyOutcome(report, path, _text_table(results), results["scale_note"])


def slug(name: str) -> str:
    """A name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _train(arm: Arm, config: StudyConfig, pairs: list[Pair], folder: Path, out: Path, progress: Progress) -> FitResult:
    network = build_network(config.network.model_copy(update={"family": arm.family}), seed=config.train.seed)
    return fit(
        network,
        pairs,
        folder,
        train=config.train,
        loss=arm.loss,
        run_folder=out / "networks" / slug(arm.name),
        progress=lambda step, _: progress(f"training {arm.name}", step, config.train.steps),
    )


def _denoise_all(fits: dict[str, FitResult], test: list[Pair], folder: Path, out: Path, progress: Progress) -> dict[str, float]:
    """Denoise every test slice with every network into `out/denoised`; gives the median seconds per slice of each."""
    seconds: dict[str, float] = {}
    todo = len(fits) * len(test)
    for k, (name, result) in enumerate(fits.items()):
        denoiser = Denoiser(torch_engine(result.network), hu_range=HURange(), stride=STRIDE)
        target = out / "denoised" / slug(name)
        target.mkdir(parents=True, exist_ok=True)
        times = []
        for number, pair in enumerate(test):
            started = time.perf_counter()
            denoised = denoiser.denoise_slice(pair.images(folder)[0].astype(np.float32))
            times.append(time.perf_counter() - started)
            np.save(target / f"{pair.key}.npy", denoised, allow_pickle=False)
            progress("denoising test slices", k * len(test) + number + 1, todo)
        seconds[name] = float(np.median(times))
    return seconds


def _measure_all(config: StudyConfig, test: list[Pair], folder: Path, out: Path, *, workers: int, progress: Progress) -> list[Row]:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_measure, config, pair, folder, out) for pair in test]
        for done, _ in enumerate(as_completed(waiting), start=1):
            progress("measuring", done, len(test))
    return [row for future in waiting for row in future.result()]


def _measure(config: StudyConfig, pair: Pair, folder: Path, out: Path) -> list[Row]:
    """All measures of one test slice, one row for each method."""
    images = _images(config, pair, folder, out)
    reference, truth = images.pop("normal dose"), images.pop("truth", None)
    spatial = next((arm.name for arm in config.arms if arm.family == "hybrid" and arm.loss.weight == 0), None)
    if spatial is not None:
        images |= {f"blend {share:g}": share * images[INPUT] + (1 - share) * images[spatial] for share in BLENDS}
    measured = evaluate_slice(
        reference,
        images,
        pixel_mm=pair.pixel_mm,
        protocols=config.protocols,
        band=Band(*config.band),
        truth_hu=truth,
    )
    return [Row(patient=pair.patient, slice=pair.slice_index, method=name, metrics=values) for name, values in measured.items()]


def _images(config: StudyConfig, pair: Pair, folder: Path, out: Path) -> dict[str, NDArray[np.float32]]:
    """Every image of one test slice, in HU, by name."""
    stored = pair.images(folder).astype(np.float32)
    images = {"normal dose": stored[1], INPUT: stored[0]}
    if pair.has_truth:
        images["truth"] = stored[2]
    for arm in config.arms:
        images[arm.name] = np.load(out / "denoised" / slug(arm.name) / f"{pair.key}.npy", allow_pickle=False)
    return images


# --- results: plain data, from which table, statistics and report are made ---------------------------------------------------


def _results(
    config: StudyConfig, pairs: list[Pair], fits: dict[str, FitResult], timings: dict[str, float], rows: list[Row]
) -> dict[str, Any]:
    """Everything that was found, ready for JSON."""
    found = by_patient(rows)
    baselines = [arm.name for arm in config.arms if arm.name != config.proposed]
    comparisons = {key: _compare(found, key, config.proposed, baselines) for key in _compared_measures(config)}
    results: dict[str, Any] = {
        "title": config.title,
        "scale_note": _scale_note(config, pairs),
        "splits": {
            side: {
                "patients": sorted({pair.patient for pair in pairs if pair.split == side}),
                "slices": sum(pair.split == side for pair in pairs),
            }
            for side in ("train", "validation", "test")
        },
        "arms": [_describe(arm, config, fits[arm.name], timings[arm.name]) for arm in config.arms],
        "proposed": config.proposed,
        "measures": {
            method: {key: summary.to_dict() for key, summary in measures.items()} for method, measures in summarise(rows).items()
        },
        "per_patient": found,
        "comparisons": {
            key: {baseline: comparison.to_dict() for baseline, comparison in each.items()} for key, each in comparisons.items()
        },
        "claims": _claims(config, found, comparisons),
        "rows": [dict(row) for row in rows],
    }
    return results


def _compared_measures(config: StudyConfig) -> dict[str, Literal["higher", "lower", "one"]]:
    """The measures of the paper's claims and those that keep them honest, and which way each is better."""
    measures: dict[str, Literal["higher", "lower", "one"]] = {}
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
    }


def _compare(
    found: dict[str, dict[str, dict[str, float]]], key: str, proposed: str, baselines: list[str]
) -> dict[str, PairedComparison]:
    """The proposed arm against each other one, patient by patient, Holm over the comparators."""
    if key not in found[proposed]:
        return {}
    patients = sorted(found[proposed][key])

    def values(method: str) -> list[float]:
        return [found[method][key].get(patient, math.nan) for patient in patients]

    return compare_with_each(values(proposed), {name: values(name) for name in baselines})


def _scale_note(config: StudyConfig, pairs: list[Pair]) -> str:
    count = {side: len({pair.patient for pair in pairs if pair.split == side}) for side in ("train", "validation", "test")}
    slices = {side: sum(pair.split == side for pair in pairs) for side in count}
    virtual = sum(pair.patient.startswith("virtual-") for pair in pairs)
    kind = "all are virtual" if virtual == len(pairs) else f"{virtual / len(pairs):.0%} of the slices are virtual"
    return (
        f"This study is small: {slices['train']} training slices of {count['train']} patients, {slices['validation']} validation "
        f"slices of {count['validation']}, {slices['test']} test slices of {count['test']}; {kind}. Each network was trained once, "
        f"for {config.train.steps} steps of {config.train.batch} patches of {config.train.patch}² pixels; the paper used 52,000 "
        "pairs. It shows that the experiment runs, not which method is best."
    )


def _describe(arm: Arm, config: StudyConfig, result: FitResult, seconds: float) -> dict[str, Any]:
    loss = "MSE" if arm.loss.weight == 0 else f"MSE + {arm.loss.weight:g} · {arm.loss.mode} term on Ω_h"
    return {
        "name": arm.name,
        "family": arm.family,
        "loss": loss,
        "parameters": parameter_count(result.network),
        "macs_per_512": count_macs(result.network, size=512),
        "seconds_per_slice": round(seconds, 3),
        "best_step": result.best_step,
        "train_seconds": result.seconds,
        "history": result.history,
    }


def _claims(
    config: StudyConfig,
    found: dict[str, dict[str, dict[str, float]]],
    comparisons: dict[str, dict[str, PairedComparison]],
) -> list[dict[str, str]]:
    """The paper's claims, each with what this study found."""
    psnr = f"psnr_db[{config.protocols[0]}]"
    ssim = f"ssim[{config.protocols[0]}]"
    single = [arm.name for arm in config.arms if arm.family != "hybrid"]
    spatial = [arm.name for arm in config.arms if arm.loss.weight == 0 and arm.name != config.proposed]
    claims = [
        _claim(f"PSNR is 0.7 to 1.1 dB higher than {name}", comparisons[psnr][name], least=0.7, unit=" dB") for name in single
    ]
    claims += [_claim(f"SSIM is higher than {name}", comparisons[ssim][name], least=0.0, unit="") for name in single]
    claims += [
        _claim(
            f"High-frequency energy is closer to the normal dose than {name}",
            comparisons["hf_consistency[fine_texture]"][name],
            least=0.0,
            unit=" in consistency min(r, 1/r), fine texture",
        )
        for name in spatial
    ]
    proposed = np.nanmean(list(found[config.proposed]["texture_index"].values()))
    for name in single:
        other = np.nanmean(list(found[name]["texture_index"].values()))
        gain = float(1 - proposed / other)
        compared = comparisons["texture_index"][name]
        claim = _claim(
            f"Texture measures are 8 to 14 % better than {name}", compared, least=0.0, unit=" in the texture index", sign=-1
        )
        claim["found"] = f"{gain:+.1%}; {claim['found']}"
        if claim["verdict"] == "reproduced" and gain < 0.08:
            claim["verdict"] = "not reproduced"
        claims.append(claim)
    return claims


def _claim(claim: str, compared: PairedComparison, *, least: float, unit: str, sign: int = 1) -> dict[str, str]:
    """One claim against one comparison. `sign` −1 where a lower value is the better one; `least` is what the claim asks for."""
    interval = f"{compared.mean:+.3f}{unit}, 95 % interval [{compared.interval_low:+.3f}, {compared.interval_high:+.3f}]"
    gain = sign * compared.mean
    if not compared.can_reach():
        verdict = "cannot be said"
    elif not compared.is_significant():
        verdict = "not reproduced"
    elif gain < 0:
        verdict = "opposite"
    else:
        verdict = "reproduced" if gain >= least else "not reproduced"
    return {"claim": claim, "found": interval, "verdict": verdict, "why": compared.verdict()}


# --- the report ---------------------------------------------------------------------------------------------------------------


def _report(
    config: StudyConfig, results: dict[str, Any], fits: dict[str, FitResult], test: list[Pair], folder: Path, out: Path
) -> StudyReport:
    return StudyReport(
        title=config.title,
        scale_note=results["scale_note"],
        arms=results["arms"],
        proposed=config.proposed,
        table=_table_rows(config, results),
        comparisons=[
            {
                "metric": key,
                "baseline": baseline,
                "n": found["n"],
                "mean_difference": found["mean"],
                "ci_low": found["interval_low"],
                "ci_high": found["interval_high"],
                "p_t": found["t_p"],
                "p_wilcoxon": found["wilcoxon_p"],
                "p_holm": found["holm_p"],
                "effect_size": found["cohen_dz"],
                "verdict": found["verdict"],
            }
            for key, each in results["comparisons"].items()
            for baseline, found in each.items()
        ],
        curves={name: [(int(row["step"]), row["rmse_hu"]) for row in result.history] for name, result in fits.items()},
        crops=_crops(config, test, folder, out),
        per_patient={
            key: {arm: list(results["per_patient"][arm][key].values()) for arm in _methods(config)}
            for key in _compared_measures(config)
            if key in results["per_patient"][INPUT]
        },
        facts={
            "pairs": f"{sum(side['slices'] for side in results['splits'].values())} slices",
            "test patients": ", ".join(results["splits"]["test"]["patients"]),
            "configuration hash": config.hash(),
            **{f"version of {name}": version for name, version in versions().items()},
        },
        config_yaml=(out / "config.yaml").read_text(encoding="utf-8"),
        claims=results["claims"],
    )


def _methods(config: StudyConfig) -> list[str]:
    return [INPUT, *(arm.name for arm in config.arms)]


def _table_rows(config: StudyConfig, results: dict[str, Any]) -> list[StudyRow]:
    rows = []
    for key, better in _compared_measures(config).items():
        if key not in results["measures"][INPUT]:
            continue
        values = {}
        for method in results["measures"]:
            summary = results["measures"][method][key]
            mean, sd = (math.nan if summary[name] is None else summary[name] for name in ("mean", "sd"))
            values[method] = (mean, sd, summary["n_patients"])
        rows.append(StudyRow(key, _label(key), better, values))
    return rows


def _label(key: str) -> str:
    name, _, place = key.rstrip("]").partition("[")
    names = {
        "psnr_db": "PSNR [dB]",
        "ssim": "SSIM",
        "hf_ratio": "HF energy ratio",
        "hf_consistency": "HF consistency",
        "hf_coherence": "HF coherence",
        "hf_coherence_truth": "HF coherence with truth",
        "texture_index": "texture error index",
    }
    return f"{names[name]}, {place.replace('_', ' ').replace(',', ', ')}" if place else names[name]


def _crops(config: StudyConfig, test: list[Pair], folder: Path, out: Path, *, side: int = 72) -> list[CropView]:
    """The places with the most fine structure, one test slice of each region."""
    crops = []
    for region in sorted({pair.region for pair in test}):
        pair = next(pair for pair in test if pair.region == region)
        images = _images(config, pair, folder, out)
        images.pop("truth", None)
        for place in find_crops(images["normal dose"], pixel_mm=pair.pixel_mm, side=side):
            window = (place.window.centre, place.window.width)
            crops.append(
                CropView(f"{region}: {place.name}", pair.pixel_mm, {name: place.of(hu) for name, hu in images.items()}, window)
            )
    return crops


def _text_table(results: dict[str, Any]) -> list[list[str]]:
    """The table of the command line: methods as rows."""
    first = next(key for key in results["measures"][INPUT] if key.startswith("psnr_db"))
    columns = (first, "hf_ratio[fine_texture]", "hf_coherence[fine_texture]", "texture_index")
    table = [["method", *columns]]
    for method, measures in results["measures"].items():
        cells = []
        for key in columns:
            mean, sd = measures[key]["mean"], measures[key]["sd"]
            cells.append("n/a" if mean is None else f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}"))
        table.append([method, *cells])
    return table


def _finite(value: Any) -> Any:
    """The same data with None for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
