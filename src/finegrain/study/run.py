"""The main path of a study: what is done, in which order, and what is not done again.

A study's folder holds `pairs/` (or names a store), `methods/` with a folder for each method and seed, `measured/` with a file for
each test slice, `detected/` with one for each method, and what is made of them: `results.json`, `patients.csv`, `report.html`,
and two figures. Each part is whole or not there and says what it belongs to: a run that was stopped at any point goes on from it.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finegrain.config import ClassicalArm, PairsInput, StudyConfig
from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.fidelity import protocol_named
from finegrain.evaluate.run import REFERENCE
from finegrain.figures import INPUT, bar_figure, crop_figure, save_png
from finegrain.files import json_safe, slug, write_whole
from finegrain.pairs.build import pairs_of_run
from finegrain.pairs.manifest import Pair
from finegrain.parallel import in_processes, queues
from finegrain.provenance import write_provenance
from finegrain.report import render_study
from finegrain.simulate.fbp import find_kernel
from finegrain.study.classical import check_installed
from finegrain.study.detecting import detectability
from finegrain.study.images import free_names
from finegrain.study.kept import read_json
from finegrain.study.measuring import TRUTH, measure_all
from finegrain.study.methods import (
    Method,
    Progress,
    TestSet,
    all_methods,
    check_method,
    main_test,
    make_method,
    show_method,
    untrained,
)
from finegrain.study.page import shown_pairs, study_page
from finegrain.study.results import collect_results, results_table

Whole = Callable[[float], None]
"""Called with the share of the whole study that is done, roughly by time."""

STEP_S, DENOISE_S, MEASURE_S = 0.15, 0.4, 0.4
"""Seconds of a training step, a denoised slice and a measured image on two cores, for the share that is done; a rough guess."""


@dataclass(frozen=True)
class StudyOutcome:
    """Where a study's results are, and its table as text; the first row is the heading."""

    report: Path
    results: Path
    table: list[list[str]]
    scale_note: str


def run_study(
    config: StudyConfig, out: Path, *, data_root: Path, jobs: int, progress: Progress, whole: Whole = lambda share: None
) -> StudyOutcome:
    """Do a study in `out`. What is finished there already is not done again: pairs, networks, denoised and measured slices.

    Args:
        jobs: processes at a time; each network that is trained takes one, with the threads of its configuration.
        progress: told of each part by its name.

    Raises: FinegrainError, and leaves the folder as it is, if it holds a study of another configuration.
    """
    if jobs < 1:
        raise ConfigError(f"expected at least one job, got {jobs}")
    _check(config)
    methods = all_methods(config)
    sets = test_sets(config, out, data_root=data_root, jobs=jobs, progress=progress)
    for method in methods:
        check_method(config, method, list(sets[0].pairs), out)
    write_provenance(out, config)
    told = _WholeOf(config, methods, sets, progress, whole)
    _for_each(partial(_make, config, sets, out), methods, jobs=jobs, progress=told)
    facts = {method: read_json(method.folder(out) / "method.json") for method in methods}
    measured = measure_all(config, methods, facts, sets, out, jobs=jobs, progress=told)
    detected = detectability(config, methods, facts, sets[0], out) if config.lesions is not None else {}
    results = json_safe(collect_results(config, methods, facts, sets, measured, detected))
    path = out / "results.json"
    write_whole(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_whole(out / "patients.csv", _patients_csv(results))
    shown = {method: shown_pairs(config, results, sets[0], method) for method in methods}
    _for_each(partial(_show, config, sets[0], shown, out), methods, jobs=jobs, progress=told)
    content = study_page(config, results, methods, facts, sets[0], out)
    report = out / "report.html"
    render_study(content, report)
    arms = [arm.name for arm in config.all_arms]
    bars = bar_figure(content.table, per_patient=content.per_patient, proposed=config.proposed, arms=arms)
    save_png(bars, out / "figure-1-measures.png")
    save_png(crop_figure(content.crops), out / "figure-2-crops.png")
    whole(1.0)
    return StudyOutcome(report, path, results_table(config, results), results["scale_note"])


def _check(config: StudyConfig) -> None:
    """What a study would stumble over after hours is found here, before the first pair.

    Raises: ConfigError for an unknown protocol or kernel, a name that is taken, a network that cannot be built or a package that
        is missing.
    """
    for protocol in config.protocols:
        protocol_named(protocol)
    for source in (config, *config.generalisation.values()):
        for kernel in source.pairs.named_kernels() if source.pairs else ():
            find_kernel(kernel)
    taken = {INPUT, REFERENCE, TRUTH, *free_names(config)}
    for arm in config.all_arms:
        if arm.name in taken or arm.name.split()[0] in ("blend", "equaliser"):
            raise ConfigError(f"the arm name {arm.name!r} means another image of the study; choose another name")
        if isinstance(arm, ClassicalArm):
            check_installed(arm)
        else:
            untrained(config, Method(arm, config.all_seeds[0]))
    labels: dict[str, str] = {slug(name): name for name in taken}
    for label in (method.label for method in all_methods(config)):
        if (other := labels.setdefault(slug(label), label)) != label:
            raise ConfigError(f"{label!r} and {other!r} would share a file; choose other names for arms")


def test_sets(config: StudyConfig, out: Path, *, data_root: Path, jobs: int, progress: Progress) -> tuple[TestSet, ...]:
    """The study's own pairs first, then those for generalisation.

    Raises: DataError if a set has no test patients, or tests on patients that the networks are trained on.
    """
    inputs: list[tuple[str, PairsInput, Path]] = [("", config, out)]
    inputs += [(name, given, out / "generalisation" / slug(name)) for name, given in config.generalisation.items()]
    sets = []
    for name, given, folder in inputs:
        what = f"making pairs of {name!r}" if name else "making pairs"
        pairs, store = pairs_of_run(given, folder, data_root=data_root, workers=jobs, progress=partial(progress, what))
        sets.append(TestSet(name, store, tuple(pairs)))
    trained = {pair.patient for pair in sets[0].pairs if pair.split != "test"}
    for one in sets:
        place = f"generalisation {one.name!r}" if one.name else "the study"
        if not main_test(one):
            raise DataError(f"{place} has no test patients; raise test_fraction or give a source the split 'test'")
        if shared := sorted({pair.patient for pair in main_test(one)} & trained):
            raise DataError(
                f"{place} tests on {len(shared)} patients that the networks are trained on, {shared[0]} among them; "
                "give them other seeds or names"
            )
    return tuple(sets)


def _for_each(work: Callable[[Progress, Method], None], methods: list[Method], *, jobs: int, progress: Progress) -> None:
    """Do something with each method: one after the other, or several at a time, each in a process of its own."""
    if jobs == 1 or len(methods) == 1:
        for method in methods:
            work(progress, method)
        return
    with queues() as manager:
        queue, devices = manager.Queue(), manager.Queue()
        for device in range(torch.cuda.device_count()):
            devices.put(device)

        def relay() -> None:
            for message in iter(queue.get, None):
                progress(*message)

        teller = threading.Thread(target=relay, daemon=True)
        teller.start()
        try:
            for _ in in_processes(partial(_in_a_process, work, queue, devices), methods, workers=jobs):
                pass
        finally:
            queue.put(None)
            teller.join()


def _in_a_process(work: Callable[[Progress, Method], None], queue: Any, devices: Any, method: Method) -> None:
    if torch.cuda.device_count() > 1 and not torch.cuda.is_initialized() and not devices.empty():
        torch.cuda.set_device(devices.get())  # a process of its own for each GPU; it keeps it
    work(lambda *message: queue.put(message), method)


def _make(config: StudyConfig, sets: tuple[TestSet, ...], out: Path, progress: Progress, method: Method) -> None:
    make_method(config, method, sets[0], sets[1:], out, progress)


def _show(
    config: StudyConfig, main: TestSet, shown: Mapping[Method, list[Pair]], out: Path, progress: Progress, method: Method
) -> None:
    show_method(config, method, main, shown[method], out, progress)


class _WholeOf:
    """Passes progress on, and reckons from it how much of the whole study is done."""

    def __init__(
        self, config: StudyConfig, methods: list[Method], sets: tuple[TestSet, ...], progress: Progress, whole: Whole
    ) -> None:
        self.progress, self.whole = progress, whole
        n_test = sum(len(main_test(one)) for one in sets)
        lesions = len(main_test(sets[0])) * len(config.lesions.diameters_mm) if config.lesions else 0
        self.seconds: dict[str, float] = {"measuring": n_test * MEASURE_S * (len(methods) + len(free_names(config)))}
        for method in methods:
            if method.seed is not None:
                self.seconds[f"training {method.label}"] = config.train.steps * STEP_S
            self.seconds[f"denoising with {method.label}"] = n_test * DENOISE_S
            if config.has_lesions(method.seed):
                self.seconds[f"lesions with {method.label}"] = lesions * DENOISE_S
        self.done: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        self.progress(what, done, total)
        if what in self.seconds:
            self.done[what] = self.seconds[what] * done / max(total, 1)
            self.whole(sum(self.done.values()) / sum(self.seconds.values()))


def _patients_csv(results: Mapping[str, Any]) -> str:
    """One line for each patient and method, one column for each measure; empty where there is none."""
    keys = list(dict.fromkeys(key for metrics in results["per_patient"].values() for key in metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient", "method", *keys])
    for method, metrics in results["per_patient"].items():
        for patient in sorted({patient for values in metrics.values() for patient in values}):
            values = [metrics.get(key, {}).get(patient) for key in keys]
            writer.writerow([patient, method, *("" if value is None else f"{value:.6g}" for value in values)])
    return text.getvalue()
