"""Results of a study → what its report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.config import StudyConfig
from finegrain.evaluate.run import REFERENCE
from finegrain.evaluate.stats import ALPHA
from finegrain.figures import INPUT, CropView, Detection, StudyRow, find_crops
from finegrain.pairs.manifest import Pair
from finegrain.provenance import versions
from finegrain.report import Method as ShownMethod
from finegrain.report import StudyReport, WorstCase, label_of
from finegrain.report.evaluation import CROP_SIDE, worst_crop
from finegrain.report.words import bands_in
from finegrain.study.images import equalised_name, free_names, spatial_arm, told_the_dose
from finegrain.study.measuring import TRUTH, study_images
from finegrain.study.methods import Method, TestSet, main_test
from finegrain.study.results import compared_measures, dose_in_words


def study_page(
    config: StudyConfig,
    results: Mapping[str, Any],
    methods: list[Method],
    facts: Mapping[Method, Mapping[str, Any]],
    main: TestSet,
    out: Path,
) -> StudyReport:
    """What the page of a study shows."""
    networks = [method for method in methods if method.seed is not None]
    first = {method.arm.name: method for method in reversed(networks)}  # of several seeds the first
    return StudyReport(
        title=config.title,
        scale_note=results["scale_note"],
        seeds_note=_seeds_note(config, results),
        methods=_shown_methods(config),
        proposed=config.proposed,
        arms=[facts[first[name]] for name in dict.fromkeys(method.arm.name for method in networks)],
        table=_rows(config, results),
        comparisons=[_comparison(key, name, found) for key, each in results["comparisons"].items() for name, found in each.items()],
        curves={name: [(int(row["step"]), row["rmse_hu"]) for row in facts[method]["history"]] for name, method in first.items()},
        crops=study_crops(config, methods, facts, main, out),
        per_patient={
            key: {name: list(each[key].values()) for name, each in results["per_patient"].items() if key in each}
            for key in compared_measures(config)
        },
        nps={
            name: (np.array(curve["frequency_per_mm"]), np.array(curve["power_hu2_mm2"])) for name, curve in results["nps"].items()
        },
        bands={
            name: bands_in({key: _number(one["mean"]) for key, one in each.items()}) for name, each in results["measures"].items()
        },
        worst=_worst(config, results, methods, facts, main, out),
        detectability=_detections(results),
        plan=results["plan"],
        qc=[(row[0], f"{row[1]} pairs" + (f" ({row[2]})" if row[2] else "")) for row in results["quality_control"][1:]],
        generalisation=results["generalisation"],
        repeat=[("finegrain study config.yaml --out FOLDER", "with the configuration below, the same versions and the same data")],
        facts={
            "pairs": f"{sum(side['slices'] for side in results['splits'].values())} slices",
            "test patients": ", ".join(results["splits"]["test"]["patients"]),
            "configuration hash": config.hash(),
            **{f"version of {name}": version for name, version in versions().items()},
        },
        config_yaml=(out / "config.yaml").read_text(encoding="utf-8"),
        claims=results["claims"],
    )


def _detections(results: Mapping[str, Any]) -> dict[str, dict[str, list[Detection]]]:
    """Observer → method → d′ of each lesion."""
    found: dict[str, dict[str, list[Detection]]] = {}
    for name, each in results["detectability"].items():
        for one in each:
            gain = one["gain"] and (one["gain"]["gain"], one["gain"]["low"], one["gain"]["high"])
            certain = one["gain"] is not None and one["gain"]["holm_p"] < ALPHA
            seen = Detection(one["lesion"], one["d_prime"], one["low"], one["high"], gain, certain)
            found.setdefault(one["observer"], {}).setdefault(name, []).append(seen)
    return found


def _shown_methods(config: StudyConfig) -> list[ShownMethod]:
    shown = [ShownMethod(INPUT, "input")]
    for arm in config.all_arms:
        shown.append(ShownMethod(arm.name, "free" if arm.kind == "classical" else "arm"))
    spatial = spatial_arm(config) or ""
    for name in free_names(config):
        start = name.removesuffix(", dose told").removesuffix(", equalised")
        shown.append(ShownMethod(name, "free", start=start if start in config.leads else spatial))
    return shown


def _seeds_note(config: StudyConfig, results: Mapping[str, Any]) -> str:
    seeds = results["seeds"]
    if len(seeds) < 2:
        return "Each network was trained once: how far a second training would lie is not known."
    psnr = f"psnr_db[{config.protocols[0]}]"
    lines = []
    for arm in config.arms:
        if arm.kind != "classical":
            means = results["measures"][arm.name][psnr]["seed_means"]
            lines.append(f"{arm.name} {np.std(means, ddof=1):.3f}" if len(means) > 1 else f"{arm.name} trained once")
    text = f"The networks were trained with {len(seeds)} seeds. SD of the mean PSNR over seeds in dB: {', '.join(lines)}."
    if config.lesions is not None and config.lesions.seeds is not None and config.lesions.seeds < len(seeds):
        text += f" Lesions were looked for under the first {config.lesions.seeds} of them alone."
    return text


def _rows(config: StudyConfig, results: Mapping[str, Any]) -> list[StudyRow]:
    """The compared measures first, then tissues, then regions of the body."""
    measures = results["measures"]
    better = dict(compared_measures(config))
    keys = [key for key in better if key in measures[config.proposed]]
    keys += [key for key in measures[config.proposed] if key not in keys and key.partition("[")[0] in ("vif", "rmse_hu", "hu_bias")]
    keys += [f"{name}[uniform]" for name in ("hf_ratio", "hf_coherence")]
    rows = []
    for key in keys:
        values = {
            name: (_number(each[key]["mean"]), _number(each[key]["sd"]), each[key]["n_patients"])
            for name, each in measures.items()
            if key in each
        }
        way = better.get(key, {"vif": "higher", "rmse_hu": "lower", "hu_bias": "zero"}.get(key.partition("[")[0], "one"))
        rows.append(StudyRow(key, label_of(key), way, values))  # type: ignore[arg-type]
    psnr = f"psnr_db[{config.protocols[0]}]"
    if len(results["regions"]) > 1:
        for region, each in results["regions"].items():
            values = {name: tuple(found[psnr]) for name, found in each.items() if psnr in found}
            key = f"{psnr[:-1]},{region}]"
            rows.append(StudyRow(key, label_of(key), "higher", values))  # type: ignore[arg-type]
    return rows


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _comparison(key: str, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "mean_difference": "mean",
        "p_t": "t_p",
        "p_wilcoxon": "wilcoxon_p",
        "p_permutation": "permutation_p",
        "p_holm": "holm_p",
        "effect_size": "cohen_dz",
    }
    same = ("n", "n_comparisons", "interval", "hedges_gz", "verdict", "warnings")
    return {"metric": key, "baseline": name} | {new: found[old] for new, old in names.items()} | {one: found[one] for one in same}


def _images_of_first_seed(
    config: StudyConfig,
    methods: list[Method],
    facts: Mapping[Method, Mapping[str, Any]],
    main: TestSet,
    pair: Pair,
    out: Path,
) -> dict[str, NDArray[np.float32]]:
    """Every image but the truth and most free competitors, by name."""
    images = study_images(config, _of_first_seed(methods, config), facts, main, pair, out)
    equalised = equalised_name(config.proposed)
    hidden = {TRUTH, *free_names(config)} - {"blend 0.2", "equaliser 1", equalised, told_the_dose(equalised)}
    shown: dict[str, NDArray[np.float32]] = {}
    for (name, _), image in images.items():
        if name not in hidden:
            shown.setdefault(name, image)
    return shown


def shown_pairs(config: StudyConfig, results: Mapping[str, Any], main: TestSet, method: Method) -> list[Pair]:
    """The test slices that the page shows as a method denoised them: one of each region, and those with its least gains."""
    worst = {one["pair"] for one in results["worst"] if (one["method"], one["seed"]) == (method.arm.name, method.seed)}
    crops = _of_each_region(main) if method in _of_first_seed([method], config) else []
    return list(dict.fromkeys([*crops, *(pair for pair in main_test(main) if pair.key in worst)]))


def _of_first_seed(methods: Sequence[Method], config: StudyConfig) -> list[Method]:
    return [method for method in methods if method.seed in (None, config.all_seeds[0])]


def _of_each_region(main: TestSet) -> list[Pair]:
    """The noisiest test slice of each region, where methods differ most: the largest SD of low less normal dose."""
    noisiest: dict[str, tuple[float, Pair]] = {}
    for pair in main_test(main):
        low, normal = pair.images(main.folder)[:2].astype(np.float32)
        noise = float(np.std(low - normal))
        if pair.region not in noisiest or noise > noisiest[pair.region][0]:
            noisiest[pair.region] = noise, pair
    return [noisiest[region][1] for region in sorted(noisiest)]


def study_crops(
    config: StudyConfig, methods: list[Method], facts: Mapping[Method, Mapping[str, Any]], main: TestSet, out: Path
) -> list[CropView]:
    """The places with the most fine structure in the noisiest test slice of each region, under each method's first training."""
    crops = []
    for pair in _of_each_region(main):
        images = _images_of_first_seed(config, methods, facts, main, pair, out)
        what = f"{pair.region}, {dose_in_words(pair)} dose, {pair.kernel}"
        for place in find_crops(images[REFERENCE], pixel_mm=pair.pixel_mm, side=CROP_SIDE):
            window = (place.window.centre, place.window.width)
            crops.append(
                CropView(f"{what}: {place.name}", pair.pixel_mm, {name: place.of(hu) for name, hu in images.items()}, window)
            )
    return crops


def _worst(
    config: StudyConfig,
    results: Mapping[str, Any],
    methods: list[Method],
    facts: Mapping[Method, Mapping[str, Any]],
    main: TestSet,
    out: Path,
) -> list[WorstCase]:
    """The slices with the least gain, cut where the method errs most."""
    pairs = {pair.key: pair for pair in main_test(main)}
    key = f"psnr_gain_db[{config.protocols[0]}]"
    found: Sequence[Mapping[str, Any]] = results["worst"]
    cases = []
    for one in found:
        pair = pairs[one["pair"]]
        its = [method for method in methods if (method.arm.name, method.seed) == (one["method"], one["seed"])]
        images = study_images(config, its, facts, main, pair, out)
        reference, image = images[REFERENCE, None], images[one["method"], one["seed"]]
        shown = {REFERENCE: reference, INPUT: images[INPUT, None], one["method"]: image}
        name = f"{pair.region}, slice {pair.slice_index}"
        crop = worst_crop(shown, REFERENCE, one["method"], name=name, pixel_mm=pair.pixel_mm)
        cases.append(WorstCase(pair.patient, f"slice {pair.slice_index}", one["method"], key, one["gain_db"], crop))
    return cases
