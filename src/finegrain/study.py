"""The paper's experiment from end to end: pairs → networks on equal terms → measures → statistics → figures → report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.config import Arm, StudyConfig
from finegrain.denoise import Denoiser, torch_engine
from finegrain.errors import DataError
from finegrain.evaluate.run import Row, evaluate_slice, per_patient, summarise
from finegrain.evaluate.stats import compare_paired, holm
from finegrain.frequency import Band
from finegrain.hu import HURange
from finegrain.networks.blocks import parameter_count
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork, build_network, count_macs
from finegrain.pairs.build import build_pairs
from finegrain.pairs.manifest import Pair
from finegrain.provenance import versions, write_provenance
from finegrain.report import CropView, StudyReport, render_study
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
    render_study(_report(config, results, fits, test, folder, out), report)
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


def _denoise_all(
    fits: dict[str, FitResult], test: list[Pair], folder: Path, out: Path, progress: Progress
) -> dict[str, float]:
    """Denoise every test slice with every network into `out/denoised`; gives the median seconds per slice of each."""
    import time

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


def _measure_all(
    config: StudyConfig, test: list[Pair], folder: Path, out: Path, *, workers: int, progress: Progress
) -> list[Row]:
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
    return [Row(patient=pair.patient, slice=pair.key, method=name, metrics=values) for name, values in measured.items()]


def _images(config: StudyConfig, pair: Pair, folder: Path, out: Path) -> dict[str, NDArray[np.float32]]:
    """Every image of one test slice, in HU, by name."""
    stored = pair.images(folder).astype(np.float32)
    images = {"normal dose": stored[1], INPUT: stored[0]}
    if pair.has_truth:
        images["truth"] = stored[2]
    for arm in config.arms:
        images[arm.name] = np.load(out / "denoised" / slug(arm.name) / f"{pair.key}.npy", allow_pickle=False)
    return images
