"""The paper's experiment from end to end: pairs → networks on equal terms → measures → statistics → figures → report."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.config import Arm, StudyConfig
from finegrain.denoise import Denoiser, torch_engine
from finegrain.equaliser import BandEqualiser, CalibrationSlice, calibrate_equaliser
from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.fidelity import protocol_named
from finegrain.evaluate.regions import body_mask
from finegrain.evaluate.run import Row, by_patient, evaluate_slice, summarise
from finegrain.evaluate.stats import PairedComparison, compare_with_each
from finegrain.figures import INPUT, REFERENCE, bar_figure, crop_figure, find_crops, save_png
from finegrain.files import json_safe, slug, write_whole
from finegrain.frequency import Band
from finegrain.hu import HURange
from finegrain.networks.blocks import parameter_count
from finegrain.networks.card import file_sha256
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork, build_network, count_macs
from finegrain.pairs.build import pairs_of_run
from finegrain.pairs.manifest import Pair
from finegrain.provenance import versions, write_provenance
from finegrain.report import CropView, StudyReport, StudyRow, render_study
from finegrain.simulate.fbp import find_kernel
from finegrain.train.loop import CHECKPOINT, FitResult, check_run_folder, fit

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is finished, and how much there is."""

Fits = dict[str, FitResult[DenoisingNetwork]]
"""The trained network of each arm."""

TRUTH = "truth"
"""Name of the noise-free image; those of the input and the reference are the figures'."""

BLENDS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the input added back to the spatial-only network's output: a free way to high-frequency energy."""

EQUALISERS = (0.5, 1.0)
"""Strengths of the band equaliser on the same output: another free way."""

PROGRAM = ("acquisition.py", "denoise.py", "equaliser.py", "frequency.py", "hu.py", "networks/*.py", "evaluate/*.py")
"""What denoises and measures: when it changes, slices are done again."""

FEW_PATIENTS, FEW_SLICES = 20, 5000
"""With fewer test patients or training slices than these, both ours, a study shows that it runs and no more."""


@dataclass(frozen=True)
class StudyOutcome:
    """Where a study's results are, and its table as text; the first row is the heading."""

    report: Path
    results: Path
    table: list[list[str]]
    scale_note: str


def run_study(config: StudyConfig, out: Path, *, data_root: Path, workers: int, progress: Progress) -> StudyOutcome:
    """Do a study in `out`. What is finished there already is not done again: pairs, networks, denoised and measured slices.

    Raises: FinegrainError, and leaves the folder as it is, if it holds a study of another configuration.
    """
    networks = _check(config)
    pairs, folder = pairs_of_run(
        config, out, data_root=data_root, workers=workers, progress=lambda done, n: progress("making pairs", done, n)
    )
    test = [pair for pair in pairs if pair.split == "test"]
    if not test:
        raise DataError("the study has no test patients; raise test_fraction or give a source the split 'test'")
    for arm in config.arms:
        check_run_folder(_run_folder(out, arm.name), pairs, network=networks[arm.name].config, train=config.train, loss=arm.loss)
    write_provenance(out, config)
    fits = {arm.name: _train(arm, config, networks[arm.name], pairs, folder, out, progress) for arm in config.arms}
    timings = _denoise_all(fits, test, folder, out, progress)
    equaliser = _equaliser(config, fits, pairs, folder, out, progress)
    rows = _measure_all(config, equaliser, test, folder, out, workers=workers, progress=progress)
    results = _results(config, pairs, fits, timings, equaliser, rows)
    path = out / "results.json"
    write_whole(path, json.dumps(json_safe(results), indent=1, ensure_ascii=False) + "\n")
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


def _check(config: StudyConfig) -> dict[str, DenoisingNetwork]:
    """The untrained network of each arm; what a study would stumble over after hours is found here, before the first pair.

    Raises: ConfigError for an unknown protocol or kernel, a name that is taken, or a network that cannot be built.
    """
    for protocol in config.protocols:
        protocol_named(protocol)
    for kernel in config.pairs.named_kernels() if config.pairs else ():
        find_kernel(kernel)
    for arm in config.arms:
        if arm.name in (INPUT, REFERENCE, TRUTH) or arm.name.split()[0] in ("blend", "equaliser"):
            raise ConfigError(f"the arm name {arm.name!r} means another image of the study; choose another name")
    return {
        arm.name: build_network(config.network.model_copy(update={"family": arm.family}), seed=config.train.seed)
        for arm in config.arms
    }


def _run_folder(out: Path, name: str) -> Path:
    return out / "networks" / slug(name)


def _train(
    arm: Arm,
    config: StudyConfig,
    network: DenoisingNetwork,
    pairs: list[Pair],
    folder: Path,
    out: Path,
    progress: Progress,
) -> FitResult[DenoisingNetwork]:
    return fit(
        network,
        pairs,
        folder,
        train=config.train,
        loss=arm.loss,
        run_folder=_run_folder(out, arm.name),
        progress=lambda step, _: progress(f"training {arm.name}", step, config.train.steps),
    )


def _denoise_all(fits: Fits, test: list[Pair], folder: Path, out: Path, progress: Progress) -> dict[str, float]:
    """Denoise every test slice with every network into `out/denoised`; gives the median seconds per slice of each.

    The times stand in `times.json` beside the slices, with the network and the pixels that they belong to.
    """
    seconds: dict[str, float] = {}
    todo = len(fits) * len(test)
    for k, (name, result) in enumerate(fits.items()):
        denoiser = _denoiser(result)
        target = _denoised_folder(out, name)
        target.mkdir(parents=True, exist_ok=True)
        network = _stamp(_checkpoint_sha256(out, name))
        held = _read_json(target / "times.json")
        times: dict[str, list[Any]] = held["times"] if held.get("network") == network else {}
        for number, pair in enumerate(test):
            image = target / f"{pair.key}.npy"
            if times.get(pair.key, [""])[0] == pair.sha256 and image.is_file():
                continue
            started = time.perf_counter()
            denoised = denoiser.denoise_slice(pair.images(folder)[0].astype(np.float32))
            times[pair.key] = [pair.sha256, time.perf_counter() - started]
            np.save(image, denoised, allow_pickle=False)
            write_whole(target / "times.json", json.dumps({"network": network, "times": times}))
            progress("denoising test slices", k * len(test) + number + 1, todo)
        seconds[name] = float(np.median([times[pair.key][1] for pair in test]))
    return seconds


def _denoised_folder(out: Path, name: str) -> Path:
    return out / "denoised" / slug(name)


def _checkpoint_sha256(out: Path, name: str) -> str:
    return file_sha256(_run_folder(out, name) / CHECKPOINT)


def _denoiser(result: FitResult[DenoisingNetwork]) -> Denoiser:
    return Denoiser(torch_engine(result.network), hu_range=HURange(), stride=STRIDE)


def _read_json(path: Path) -> dict[str, Any]:
    """What an earlier run wrote; nothing if there was none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _stamp(*parts: Any) -> str:
    """Hex digits of all that a stored result depends on: these parts, the program that denoises and measures, its packages."""
    return hashlib.sha256(json.dumps([_program(), versions(), *parts]).encode()).hexdigest()


@cache
def _program() -> list[str]:
    package = Path(__file__).parent
    return [file_sha256(path) for name in PROGRAM for path in sorted(package.glob(name))]


def _spatial(config: StudyConfig) -> str | None:
    """The arm that the free competitors start from: the hybrid with the spatial loss alone."""
    return next((arm.name for arm in config.arms if arm.family == "hybrid" and arm.loss.weight == 0), None)


def _equaliser(
    config: StudyConfig, fits: Fits, pairs: list[Pair], folder: Path, out: Path, progress: Progress
) -> BandEqualiser | None:
    """The band equaliser of the spatial-only hybrid, calibrated on the validation pairs; None without that arm."""
    spatial = _spatial(config)
    if spatial is None:
        return None
    validation = [pair for pair in pairs if pair.split == "validation"]
    stamp = _stamp(_checkpoint_sha256(out, spatial), [pair.sha256 for pair in validation])
    path = out / "equaliser.json"
    held = _read_json(path)
    if held.get("stamp") == stamp:
        return BandEqualiser(tuple(held["levels"]), tuple(tuple(of_level) for of_level in held["gains"]))
    denoiser = _denoiser(fits[spatial])
    slices = []
    for done, pair in enumerate(validation, start=1):
        low_dose, reference = pair.images(folder)[:2].astype(np.float32)
        slices.append(CalibrationSlice(low_dose, denoiser.denoise_slice(low_dose), reference, body_mask(reference)))
        progress("calibrating the band equaliser", done, len(validation))
    equaliser = calibrate_equaliser(slices)
    found = {"stamp": stamp, "network": spatial, "levels": equaliser.levels, "gains": equaliser.gains}
    write_whole(path, json.dumps(found, indent=1) + "\n")
    return equaliser


def _measure_all(
    config: StudyConfig,
    equaliser: BandEqualiser | None,
    test: list[Pair],
    folder: Path,
    out: Path,
    *,
    workers: int,
    progress: Progress,
) -> list[Row]:
    """All measures of all test slices. Each slice's stand in `out/measured`, and hold for its networks and settings alone."""
    networks = {arm.name: _checkpoint_sha256(out, arm.name) for arm in config.arms}
    settings = [config.protocols, config.band, networks, BLENDS, EQUALISERS, asdict(equaliser) if equaliser else None]
    stamps = {pair.key: _stamp(settings, pair.sha256, pair.pixel_mm) for pair in test}
    missing = [pair for pair in test if _read_json(_rows_path(out, pair)).get("stamp") != stamps[pair.key]]
    if missing:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            waiting = [pool.submit(_measure, config, equaliser, pair, folder, out, stamps[pair.key]) for pair in missing]
            for done, future in enumerate(as_completed(waiting), start=len(test) - len(missing) + 1):
                future.result()
                progress("measuring", done, len(test))
    return [row for pair in test for row in _read_rows(out, pair)]


def _rows_path(out: Path, pair: Pair) -> Path:
    return out / "measured" / f"{pair.key}.json"


def _read_rows(out: Path, pair: Pair) -> list[Row]:
    return [
        Row(
            patient=row["patient"],
            slice=row["slice"],
            method=row["method"],
            metrics={key: math.nan if value is None else value for key, value in row["metrics"].items()},
        )
        for row in _read_json(_rows_path(out, pair))["rows"]
    ]


def _measure(config: StudyConfig, equaliser: BandEqualiser | None, pair: Pair, folder: Path, out: Path, stamp: str) -> None:
    """Measure one test slice, one row for each method, and store the rows."""
    images = _images(config, pair, folder, out)
    reference, truth = images.pop(REFERENCE), images.pop(TRUTH, None)
    spatial = _spatial(config)
    if spatial is not None and equaliser is not None:
        images |= {f"blend {share:g}": share * images[INPUT] + (1 - share) * images[spatial] for share in BLENDS}
        images |= {
            f"equaliser {strength:g}": equaliser.apply(images[spatial], images[INPUT], strength=strength) for strength in EQUALISERS
        }
    measured = evaluate_slice(
        reference,
        images,
        pixel_mm=pair.pixel_mm,
        protocols=config.protocols,
        band=Band(*config.band),
        truth_hu=truth,
    )
    rows = [Row(patient=pair.patient, slice=pair.slice_index, method=name, metrics=values) for name, values in measured.items()]
    write_whole(_rows_path(out, pair), json.dumps(json_safe({"stamp": stamp, "rows": rows})))


def _images(config: StudyConfig, pair: Pair, folder: Path, out: Path) -> dict[str, NDArray[np.floating]]:
    """Every image of one test slice, in HU, by name."""
    stored = pair.images(folder).astype(np.float32)
    images: dict[str, NDArray[np.floating]] = {REFERENCE: stored[1], INPUT: stored[0]}
    if pair.has_truth:
        images[TRUTH] = stored[2]
    for arm in config.arms:
        images[arm.name] = np.load(_denoised_folder(out, arm.name) / f"{pair.key}.npy", allow_pickle=False)
    return images


# --- results: plain data, from which table, statistics and report are made ---------------------------------------------------


def _results(
    config: StudyConfig,
    pairs: list[Pair],
    fits: Fits,
    timings: dict[str, float],
    equaliser: BandEqualiser | None,
    rows: list[Row],
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
        "equaliser": asdict(equaliser) if equaliser else None,
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
    is_small = count["test"] < FEW_PATIENTS or slices["train"] < FEW_SLICES
    judgement = "This study is small: it shows that the experiment runs, not which method is best. " if is_small else ""
    return (
        f"{judgement}{slices['train']:,} training slices of {count['train']} patients, {slices['validation']:,} validation "
        f"slices of {count['validation']}, {slices['test']:,} test slices of {count['test']}; {kind}. Each network was trained "
        f"once, for {config.train.steps:,} steps of {config.train.batch} patches of {config.train.patch}² pixels, so "
        "the tests speak of patients, not of the luck of a training. The paper used 52,000 pairs."
    )


def _describe(arm: Arm, config: StudyConfig, result: FitResult[DenoisingNetwork], seconds: float) -> dict[str, Any]:
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
    single = [arm.name for arm in config.arms if arm.family != "hybrid" and arm.name != config.proposed]
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
            f"Texture measures are 8 to 14 % better than {name}",
            compared,
            least=float(0.08 * other),
            unit=" in the texture index",
            sign=-1,
        )
        claim["found"] = f"{gain:+.1%}; {claim['found']}"
        claims.append(claim)
    return claims


def _claim(claim: str, compared: PairedComparison, *, least: float, unit: str, sign: int = 1) -> dict[str, str]:
    """One claim against one comparison. `sign` −1 where a lower value is the better one; `least` is the gain that is claimed.

    "cannot be said": too few patients to tell, or a difference that is not significant and may yet be as large as claimed.
    """
    interval = f"{compared.mean:+.3f}{unit}, 95 % interval [{compared.interval_low:+.3f}, {compared.interval_high:+.3f}]"
    gain = sign * compared.mean
    largest = max(sign * compared.interval_low, sign * compared.interval_high)
    if not compared.can_reach():
        verdict = "cannot be said"
    elif not compared.is_significant():
        verdict = "cannot be said" if 0 < least <= largest else "not reproduced"
    elif gain < 0:
        verdict = "opposite"
    else:
        verdict = "reproduced" if gain >= least else "not reproduced"
    return {"claim": claim, "found": interval, "verdict": verdict, "why": compared.verdict()}


# --- the report ---------------------------------------------------------------------------------------------------------------


def _report(config: StudyConfig, results: dict[str, Any], fits: Fits, test: list[Pair], folder: Path, out: Path) -> StudyReport:
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
        images.pop(TRUTH, None)
        for place in find_crops(images[REFERENCE], pixel_mm=pair.pixel_mm, side=side):
            window = (place.window.centre, place.window.width)
            crops.append(
                CropView(f"{region}: {place.name}", pair.pixel_mm, {name: place.of(hu) for name, hu in images.items()}, window)
            )
    return crops


def _text_table(results: dict[str, Any]) -> list[list[str]]:
    """The table of the command line: methods as rows."""
    first = next(key for key in results["measures"][INPUT] if key.startswith("psnr_db"))
    columns = (first, "hf_ratio[fine_texture]", "hf_coherence[fine_texture]", "texture_index")
    protocol = first.partition("[")[2].rstrip("]")
    table = [
        ["mean ± SD over patients", f"PSNR [dB]\n{protocol}", "HF ratio\nfine texture", "coherence\nfine texture", "texture\nindex"]
    ]
    for method, measures in results["measures"].items():
        cells = []
        for key in columns:
            mean, sd = measures[key]["mean"], measures[key]["sd"]
            cells.append("n/a" if mean is None else f"{mean:.2f}" + ("" if sd is None else f" ± {sd:.2f}"))
        table.append([method, *cells])
    return table
