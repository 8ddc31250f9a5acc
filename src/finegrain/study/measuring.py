"""The measures of every test slice under every method, and the detectability of the lesions that were inserted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.config import StudyConfig
from finegrain.equaliser import BandEqualiser
from finegrain.errors import DataError
from finegrain.evaluate.lesion import Lesion, rois_at
from finegrain.evaluate.observer import channelised_hotelling, laguerre_gauss
from finegrain.evaluate.run import REFERENCE, Row, SpectrumRow, evaluate_slice, slice_spectra
from finegrain.evaluate.spectra import NPSCurve
from finegrain.figures import INPUT
from finegrain.files import json_safe, write_whole
from finegrain.frequency import Band
from finegrain.pairs.manifest import Pair
from finegrain.parallel import in_processes
from finegrain.study.methods import (
    Method,
    Progress,
    TestSet,
    denoised_path,
    equaliser_of,
    lesion_rois,
    lesions_of,
    main_test,
    places_of,
    read_json,
    roi_sizes,
    spatial_arm,
    stamp_of,
)

TRUTH = "truth"
"""Name of the noise-free image."""

BLENDS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the input added back to the spatial-only network's output: a free way to high-frequency energy."""

EQUALISERS = (0.5, 1.0)
"""Strengths of the band equaliser on the same output: another free way."""

CHANNELS = 5
"""Laguerre–Gauss channels of the observer, as wide as half the lesion."""

FEWEST_PATIENTS_OF_D_PRIME = 3
"""Test patients below which the interval of d′ speaks of the images alone."""


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


def free_names(config: StudyConfig) -> list[str]:
    """Methods that need no training: blends and equalisers of the spatial-only network, the equalisers of those that lead."""
    free = [f"blend {share:g}" for share in BLENDS] + [f"equaliser {strength:g}" for strength in EQUALISERS]
    spatial = spatial_arm(config)
    return (free if spatial is not None else []) + [equalised_name(lead) for lead in config.leads if lead != spatial]


def equalised_name(lead: str) -> str:
    """A network with its own equaliser at full strength."""
    return f"{lead}, equalised"


def study_images(
    config: StudyConfig, methods: list[Method], facts: Mapping[Method, Mapping[str, Any]], one: TestSet, pair: Pair, out: Path
) -> dict[tuple[str, int | None], NDArray[np.float32]]:
    """Every image of one test slice in HU, by method and seed: the reference first, then the input, and the truth if known."""
    stored = pair.images(one.folder).astype(np.float32)
    images: dict[tuple[str, int | None], NDArray[np.float32]] = {(REFERENCE, None): stored[1], (INPUT, None): stored[0]}
    if pair.has_truth:
        images[TRUTH, None] = stored[2]
    spatial = spatial_arm(config)
    for method in methods:
        name, seed = method.arm.name, method.seed
        image = np.load(denoised_path(method, out, one, pair), allow_pickle=False)
        images[name, seed] = image
        equaliser = equaliser_of(facts[method])
        if equaliser is None:
            continue
        if name == spatial:
            images |= {(f"blend {share:g}", seed): share * stored[0] + (1 - share) * image for share in BLENDS}
            images |= {
                (f"equaliser {strength:g}", seed): _equalised(equaliser, image, stored[0], strength) for strength in EQUALISERS
            }
        elif name in config.leads:
            images[equalised_name(name), seed] = _equalised(equaliser, image, stored[0], 1.0)
    return images


def _equalised(equaliser: BandEqualiser, image: NDArray, low_dose: NDArray, strength: float) -> NDArray[np.float32]:
    return np.asarray(equaliser.apply(image, low_dose, strength=strength), dtype=np.float32)


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
    """All measures of all test slices. Each slice's stand in `out/measured`, and hold for its methods and settings alone."""
    settings = [
        config.protocols,
        config.band,
        [(method.arm.name, method.seed, facts[method]["identity"], facts[method].get("equaliser")) for method in methods],
        (BLENDS, EQUALISERS),
    ]
    todo = [(one, pair) for one in sets for pair in main_test(one)]
    stamps = {one.key(pair): stamp_of(settings, pair.sha256, pair.pixel_mm) for one, pair in todo}
    missing = [(one, pair) for one, pair in todo if read_json(_path(out, one, pair)).get("stamp") != stamps[one.key(pair)]]
    work = partial(_measure, config, methods, dict(facts), out)
    tasks = [(one, pair, stamps[one.key(pair)]) for one, pair in missing]
    for done, _ in enumerate(in_processes(work, tasks, workers=jobs) if tasks else (), start=len(todo) - len(missing) + 1):
        progress("measuring", done, len(todo))
    return [found for one, pair in todo for found in _read(out, one, pair)]


def _path(out: Path, one: TestSet, pair: Pair) -> Path:
    return out / "measured" / f"{one.key(pair)}.json"


def _measure(
    config: StudyConfig,
    methods: list[Method],
    facts: Mapping[Method, Mapping[str, Any]],
    out: Path,
    task: tuple[TestSet, Pair, str],
) -> None:
    one, pair, stamp = task
    images = study_images(config, methods, facts, one, pair, out)
    reference, truth = images.pop((REFERENCE, None)), images.pop((TRUTH, None), None)
    keys = {f"{name} {seed}": (name, seed) for name, seed in images}
    named = {key: images[keys[key]] for key in keys}
    measured = evaluate_slice(
        reference, named, pixel_mm=pair.pixel_mm, protocols=config.protocols, band=Band(*config.band), truth_hu=truth
    )
    curves = slice_spectra(reference, named, pixel_mm=pair.pixel_mm)
    rows = [
        {"method": name, "seed": seed, "metrics": measured[key], "nps": asdict(curves[key]) if key in curves else None}
        for key, (name, seed) in keys.items()
    ]
    if REFERENCE in curves:
        rows.append({"method": REFERENCE, "seed": None, "metrics": {}, "nps": asdict(curves[REFERENCE])})
    write_whole(_path(out, one, pair), json.dumps(json_safe({"stamp": stamp, "rows": rows})))


def _read(out: Path, one: TestSet, pair: Pair) -> Iterator[Measured]:
    for row in read_json(_path(out, one, pair))["rows"]:
        nps = row["nps"]
        yield Measured(
            set_name=one.name,
            pair=pair,
            method=row["method"],
            seed=row["seed"],
            metrics={key: math.nan if value is None else value for key, value in row["metrics"].items()},
            curve=None
            if nps is None
            else NPSCurve(nps["n_rois"], nps["variance"], tuple(math.nan if value is None else value for value in nps["power"])),
        )


def detectability(config: StudyConfig, methods: list[Method], main: TestSet, out: Path) -> dict[str, list[dict[str, Any]]]:
    """d′ of each lesion under each method: method → one entry per lesion. Methods that cannot be judged are left out.

    From what is inserted, noise and what denoising made of both is left: ROIs minus the noise-free image where there is one, else
    minus the normal dose, whose own noise then counts too. Each slice is seen through channels of its own pixel size. With several
    seeds, d′ and its interval are means over them.
    """
    sizes = roi_sizes(config, main)
    test = main_test(main)
    ensembles: dict[str, list[list[tuple[list[NDArray], list[NDArray], list[Pair]]]]] = {}
    names: list[tuple[str, Method | None]] = [(INPUT, None), *((method.arm.name, method) for method in methods)]
    for name, method in names:
        found: list[tuple[list[NDArray], list[NDArray], list[Pair]]] = [([], [], []) for _ in sizes]
        for pair in test:
            stored = pair.images(main.folder).astype(np.float32)
            anatomy = stored[2] if pair.has_truth else stored[1]
            if method is None:
                plain = stored[0]
                present = lesion_rois(config, stored[0], main, pair, sizes, lambda hu: hu)
            else:
                plain = np.load(denoised_path(method, out, main, pair), allow_pickle=False)
                with np.load(method.folder(out) / "lesions" / f"{pair.key}.npz", allow_pickle=False) as held:
                    present = [held[key] for key in held.files]
            for (with_lesion, without, shown), lesion, size, rois in zip(found, lesions_of(config), sizes, present, strict=True):
                places = places_of(config, lesion, pair, main.folder)
                background = rois_at(anatomy, places, size=size)
                with_lesion.append(rois - background)
                without.append(rois_at(plain, places, size=size) - background)
                shown.extend([pair] * len(places))
        ensembles.setdefault(name, []).append(found)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, seeds in ensembles.items():
        for index, (lesion, size) in enumerate(zip(lesions_of(config), sizes, strict=True)):
            label = f"{lesion.diameter_mm:g} mm, {lesion.contrast_hu:+g} HU".replace("-", "−")
            each = []
            for found in seeds:
                with_lesion, without, shown = found[index]
                patients = [pair.patient for pair in shown]
                enough = len(set(patients)) >= FEWEST_PATIENTS_OF_D_PRIME
                try:
                    judged = channelised_hotelling(
                        np.concatenate(with_lesion),
                        np.concatenate(without),
                        channels=_channels(shown, lesion, size),
                        ensembles="paired",
                        patients=patients if enough else None,
                    )
                except DataError:  # too few lesions found room: no number is better than one that means nothing
                    continue
                each.append(judged)
            if each:
                entry = {
                    "lesion": label,
                    "d_prime": float(np.mean([one.d_prime for one in each])),
                    "low": float(np.mean([one.low for one in each])),
                    "high": float(np.mean([one.high for one in each])),
                    "auc": float(np.mean([one.auc for one in each])),
                    "n_lesions": each[0].n_present,
                    "warnings": sorted({warning for one in each for warning in one.warnings}),
                }
                results.setdefault(name, []).append(entry)
    return results


def _channels(shown: Sequence[Pair], lesion: Lesion, size: int) -> NDArray[np.float64]:
    """The channels of each ROI, in units that make responses alike at any pixel size. Shape: (n, y, x, channel)."""
    of_pixel = {
        pixel_mm: pixel_mm * laguerre_gauss(size, pixel_mm=pixel_mm, width_mm=lesion.diameter_mm / 2, n_channels=CHANNELS)
        for pixel_mm in {pair.pixel_mm for pair in shown}
    }
    return np.stack([of_pixel[pair.pixel_mm] for pair in shown]) if shown else np.empty((0, size, size, CHANNELS))
