"""The measures of every test slice under every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.config import StudyConfig
from finegrain.evaluate.run import REFERENCE, Row, SpectrumRow, evaluate_slice, slice_spectra
from finegrain.evaluate.spectra import NPSCurve
from finegrain.figures import INPUT
from finegrain.frequency import Band
from finegrain.pairs.manifest import Pair
from finegrain.parallel import in_processes
from finegrain.study.images import Recipe, image_label, recipes_of
from finegrain.study.kept import image_stamp, keep_slice, kept_of_slice
from finegrain.study.methods import (
    Method,
    Progress,
    TestSet,
    denoised_path,
    image_stamps,
    main_test,
)

TRUTH = "truth"
"""Name of the noise-free image."""


@dataclass(frozen=True)
class Measured:
    """The measures of one method on one test slice.

    Attributes:
        set_name: of the test set; empty for the study's own.
        pair: the slice.
        method: its name; `seed`: of its training, None if it has none.
        metrics: the keys of `evaluate.run`.
        curve: noise power in soft tissue; None if there is no patch of it, or for the reference no metrics.
    """

    set_name: str
    pair: Pair
    method: str
    seed: int | None
    metrics: dict[str, float]
    curve: NPSCurve | None

    def row(self) -> Row:
        """For `by_patient` and `summarise`."""
        return Row(patient=self.pair.patient, slice=self.pair.slice_index, method=self.method, metrics=self.metrics)

    def spectrum(self) -> SpectrumRow | None:
        """For `spectra_by_patient`."""
        if self.curve is None:
            return None
        return SpectrumRow(patient=self.pair.patient, slice=self.pair.slice_index, method=self.method, curve=self.curve)


def study_images(
    config: StudyConfig, methods: Sequence[Method], facts: Mapping[Method, Mapping[str, Any]], one: TestSet, pair: Pair, out: Path
) -> dict[tuple[str, int | None], NDArray[np.float32]]:
    """Every image of one test slice in HU, by name and seed: the reference first, then the input, and the truth if known."""
    stored = pair.images(one.folder).astype(np.float32)
    images: dict[tuple[str, int | None], NDArray[np.float32]] = {(REFERENCE, None): stored[1], (INPUT, None): stored[0]}
    if pair.has_truth:
        images[TRUTH, None] = stored[2]
    for method in methods:
        denoised = np.load(denoised_path(method, out, one, pair), allow_pickle=False)
        for name, recipe in recipes_of(config, method.arm.name, facts[method].get("equaliser"), pair.dose_fraction).items():
            images[name, method.seed] = recipe.image(denoised, stored[0])
    return images


def measure_all(
    config: StudyConfig,
    methods: list[Method],
    facts: Mapping[Method, Mapping[str, Any]],
    sets: tuple[TestSet, ...],
    out: Path,
    *,
    jobs: int,
    progress: Progress,
) -> list[Measured]:
    """All measures of all test slices, of which those that are not kept yet are taken."""
    todo = [(one, pair) for one in sets for pair in main_test(one)]
    stamps = {one.key(pair): _stamps(config, facts, pair) for one, pair in todo}
    kept = {key: kept_of_slice(out, key, wanted) for key, wanted in stamps.items()}
    tasks = []
    for one, pair in todo:
        key = one.key(pair)
        if missing := {label: stamp for label, stamp in stamps[key].items() if label not in kept[key]}:
            tasks.append((one, pair, missing))
    work = partial(_measure, config, methods, dict(facts), out)
    for done, _ in enumerate(in_processes(work, tasks, workers=jobs) if tasks else (), start=len(todo) - len(tasks) + 1):
        progress("measuring", done, len(todo))
    for one, pair, _ in tasks:
        kept[one.key(pair)] = kept_of_slice(out, one.key(pair), stamps[one.key(pair)])
    return [_measured(one, pair, row) for one, pair in todo for row in kept[one.key(pair)].values()]


def _stamps(config: StudyConfig, facts: Mapping[Method, Mapping[str, Any]], pair: Pair) -> dict[str, str]:
    """Label of every image of a test slice → what its measures hold for; of the reference, noise power alone is measured."""
    plain = image_stamp(config, pair, None, Recipe())
    stamps = {INPUT: plain}
    for method, known in facts.items():
        stamps |= image_stamps(config, method, known, pair)
    return stamps | {REFERENCE: plain}


def _measure(
    config: StudyConfig,
    methods: list[Method],
    facts: Mapping[Method, Mapping[str, Any]],
    out: Path,
    task: tuple[TestSet, Pair, dict[str, str]],
) -> None:
    """Measure those images of a slice whose labels are given, each with its stamp."""
    one, pair, stamps = task
    chosen = [method for method in methods if not stamps.keys().isdisjoint(image_stamps(config, method, facts[method], pair))]
    images = study_images(config, chosen, facts, one, pair, out)
    reference, truth = images.pop((REFERENCE, None)), images.pop((TRUTH, None), None)
    labels = {image_label(*name): name for name in images if image_label(*name) in stamps}
    named = {label: images[name] for label, name in labels.items()}
    measured = evaluate_slice(
        reference, named, pixel_mm=pair.pixel_mm, protocols=config.protocols, band=Band(*config.band), truth_hu=truth
    )
    curves = slice_spectra(reference, named, pixel_mm=pair.pixel_mm)
    rows = {}
    for label in stamps:
        name, seed = labels.get(label, (REFERENCE, None))
        nps = asdict(curves[label]) if label in curves else None
        rows[label] = {"stamp": stamps[label], "method": name, "seed": seed, "metrics": measured.get(label, {}), "nps": nps}
    keep_slice(out, one.key(pair), rows)


def _measured(one: TestSet, pair: Pair, row: Mapping[str, Any]) -> Measured:
    nps = row["nps"]
    return Measured(
        set_name=one.name,
        pair=pair,
        method=row["method"],
        seed=row["seed"],
        metrics=row["metrics"],
        curve=None if nps is None else NPSCurve(nps["n_rois"], nps["variance"], tuple(nps["power"])),
    )
