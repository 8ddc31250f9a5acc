"""Any methods' images, wherever they lie, against a reference: paired, measured slice by slice, summed up per patient.

Nothing here knows of networks: a colleague's NIfTI files and a vendor's DICOM series are measured as our own are. No more than a
few slices are held at a time.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from finegrain import __version__
from finegrain.config import Config
from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.fidelity import protocol_named
from finegrain.evaluate.pairing import Case, PatientsBy, pair_methods
from finegrain.evaluate.run import (
    REFERENCE,
    Row,
    SpectrumRow,
    Summary,
    by_patient,
    evaluate_slice,
    slice_spectra,
    spectral_by_patient,
    summarise,
)
from finegrain.evaluate.spectra import pooled_nps
from finegrain.evaluate.stats import PairedComparison, compare_with_each
from finegrain.evaluate.trees import Images, find_images
from finegrain.files import write_whole
from finegrain.frequency import DCT_BLOCK, Band
from finegrain.noise_power import RadialNPS
from finegrain.pairs.collections.paired import kernel_of
from finegrain.parallel import in_processes
from finegrain.provenance import write_provenance

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is finished, and how much there is."""

INPUT, TRUTH = "low dose", "truth"
"""What images that are no candidates are called, here and on every page; the reference has its name from `run`."""

PROTOCOLS = ("abdomen-40/400", "chest--600/1500", "full-range")
"""PSNR and SSIM protocols if none is given: soft tissue, lung, and the whole scale, for each alone hides something."""

MARK, RESULTS, SLICES, PATIENTS, REPORT = ".finegrain-evaluation", "results.json", "slices.csv", "patients.csv", "report.html"
"""Files of an evaluation; a folder that holds the first was made by one, and these in it may be replaced."""

UNPACKED = ".unpacked"
"""Folder for the slices of NIfTI and NRRD volumes while an evaluation runs; taken away at its end."""

SCHEMA = 1
"""Of results.json; rises when a key changes its meaning."""

CHUNK = 4
"""Slices that a process measures at a time; a default, taken from nowhere."""

FEWEST_PIXELS = 16
"""Side of the smallest image with room for the windows of SSIM and a ring of DCT blocks. Ours."""


class EvaluateConfig(Config):
    """One evaluation. Paths are no part of it: folders are named after patients surprisingly often."""

    title: str = "Evaluation of denoised CT"
    candidates: tuple[str, ...] = Field(min_length=1, description="Names of the methods, in the order of display.")
    proposed: str = Field("", description="The method that is compared with the others; the first if none is named.")
    baselines: tuple[str, ...] = Field(
        (), description="The methods it is compared with; all others, the input too, if none is named."
    )
    has_input: bool = Field(False, description="Whether the low-dose input is measured too.")
    has_truth: bool = Field(False, description="Whether noise-free images of a simulation are given.")
    protocols: tuple[str, ...] = Field(PROTOCOLS, min_length=1, description="PSNR and SSIM protocols.")
    band: tuple[float, float] = Field((0.4, 1.5), description="Frequencies of the high-frequency measures, in band_unit.")
    band_unit: Literal["nyquist", "cycles_per_mm"] = Field("nyquist", description="nyquist: fractions of it.")
    allow_partial: bool = Field(False, description="Leave out series and slices that a method does not show, however many.")
    patients_by: PatientsBy = Field("header", description="header, or folder: a sub-folder of the reference is a patient.")
    allow_lossy: bool = Field(False, description="Take images that were compressed with loss.")
    seed: int = Field(0, ge=0, description="Of the bootstrap.")

    @property
    def methods(self) -> tuple[str, ...]:
        """The candidates, after the input if there is one."""
        return (INPUT, *self.candidates) if self.has_input else self.candidates

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """What was left open, so that the stored configuration says what was done."""
        if not isinstance(values, dict) or not values.get("candidates"):
            return values
        proposed = values.get("proposed") or values["candidates"][0]
        others = (*((INPUT,) if values.get("has_input") else ()), *values["candidates"])
        baselines = values.get("baselines") or tuple(name for name in others if name != proposed)
        protocols = values.get("protocols") or PROTOCOLS
        once = {"baselines": tuple(dict.fromkeys(baselines)), "protocols": tuple(dict.fromkeys(protocols))}
        return {**values, "proposed": proposed, **once}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        names = self.candidates
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise ValueError(f"each candidate needs a name of its own, got {', '.join(names)}")
        if not all(text.isprintable() for text in (self.title, *names)):
            raise ValueError("expected a title and names that can be printed, got a line break or another control character")
        if taken := {REFERENCE, INPUT, TRUTH}.intersection(names):
            raise ValueError(f"the name {taken.pop()!r} means other images; choose another")
        if self.proposed not in names:
            raise ValueError(f"the proposed method {self.proposed!r} is none of {', '.join(names)}")
        if unknown := set(self.baselines) - set(self.methods):
            raise ValueError(f"the baseline {sorted(unknown)[0]!r} is none of {', '.join(self.methods)}")
        if self.proposed in self.baselines:
            raise ValueError(f"{self.proposed!r} cannot be compared with itself; choose other baselines")
        for protocol in self.protocols:
            protocol_named(protocol)
        Band(*self.band, self.band_unit).mask(DCT_BLOCK, pixel_mm=0.7)
        return self


@dataclass(frozen=True)
class Sources:
    """Where the images lie: each a folder, searched with its sub-folders, or a file.

    Attributes:
        candidates: by name, as the configuration has them.
    """

    reference: Path
    candidates: Mapping[str, Path]
    input: Path | None = None
    truth: Path | None = None


class SliceRow(Row):
    """The metrics of one method on one slice: which series of the patient, and where along its normal in mm."""

    series: int
    z_mm: float


@dataclass(frozen=True, eq=False)
class SliceImages:
    """One slice in the images of the reference and all methods, to be looked at.

    Attributes:
        why: how it was chosen, in words.
        images: by name, the reference first, in HU.
    """

    patient: str
    slice: int
    z_mm: float
    why: str
    pixel_mm: float
    images: Mapping[str, NDArray[np.float32]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found.

    Attributes:
        config: the configuration, complete.
        patients: for each, its series: numbers of slices, geometry, kernel.
        rows: one for each method and slice.
        measures: method → metric → mean ± SD over patients; the mean is infinite where every slice is.
        per_patient: method → metric → patient → mean over its slices.
        n_infinite: method → metric → slices on which it is infinite (PSNR of identical images).
        comparisons: metric → baseline → proposed − baseline, paired by patient.
        nps: noise power of the reference and of each method in soft tissue, over all patients, each slice by its patches; empty
            where there is none.
        views: slices to be looked at: the worst, the median and the best of the proposed method.
        notes: what a reader must know; safe to show.
    """

    config: EvaluateConfig
    patients: Mapping[str, Sequence[Mapping[str, Any]]]
    rows: Sequence[SliceRow] = field(repr=False)
    measures: Mapping[str, Mapping[str, Summary]]
    per_patient: Mapping[str, Mapping[str, Mapping[str, float]]]
    n_infinite: Mapping[str, Mapping[str, int]]
    comparisons: Mapping[str, Mapping[str, PairedComparison]]
    nps: Mapping[str, RadialNPS] = field(repr=False)
    views: Sequence[SliceImages]
    notes: Sequence[str]

    def values_of(self, method: str, metric: str) -> list[float]:
        """One value per patient, NaN where there is none, in the order of `patients`."""
        of_metric = self.per_patient[method].get(metric, {})
        return [of_metric.get(patient, math.nan) for patient in self.patients]


def compared_metrics(config: EvaluateConfig) -> list[str]:
    """The metrics in which the proposed method is compared: few, for each test more is one more chance to be wrong."""
    return [
        *(f"{metric}[{protocol}]" for protocol in config.protocols for metric in ("psnr_db", "ssim")),
        "rmse_hu",
        "hf_consistency[fine_texture]",
        "hf_coherence[fine_texture]",
        "hf_coherence_truth[fine_texture]",
        "texture_index",
        "nps_log_distance",
    ]


def evaluate_folders(
    config: EvaluateConfig,
    sources: Sources,
    *,
    scratch: Path,
    jobs: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Pair the images of all methods with the reference and measure them.

    Args:
        scratch: folder for `.unpacked`, which needs 4 bytes a voxel of each volume that is no DICOM while this runs.
        jobs: processes.

    Raises: DataError or ScanError, in one line, for images that do not fit or cannot be judged.
    """
    if set(sources.candidates) != set(config.candidates):
        raise ConfigError(f"expected images of {', '.join(config.candidates)}, got {', '.join(sources.candidates)}")
    unpacked, was_there = scratch / UNPACKED, scratch.is_dir()
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    try:
        cases, notes = _paired(config, sources, unpacked, progress)
        rows, spectra = _measured(config, cases, jobs=jobs, progress=progress)
        return _evaluation(config, cases, rows, spectra, notes)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        if not was_there:
            with suppress(OSError):
                scratch.rmdir()


def _paired(config: EvaluateConfig, sources: Sources, scratch: Path, progress: Progress) -> tuple[list[Case], list[str]]:
    paths = {
        REFERENCE: sources.reference,
        INPUT: sources.input,
        **{name: sources.candidates[name] for name in config.candidates},
        TRUTH: sources.truth,
    }
    found: dict[str, list[Images]] = {}
    notes: list[str] = []
    given = {name: path for name, path in paths.items() if path is not None}
    for done, (name, path) in enumerate(given.items()):
        progress(f"looking for {name}", done, len(given))
        found[name], left_out = find_images(path, name, scratch=scratch / str(done), allow_lossy=config.allow_lossy)
        notes += left_out
    progress("pairing", 0, 1)
    try:
        cases, lines = pair_methods(
            found[REFERENCE],
            {name: found[name] for name in config.methods},
            truth=found.get(TRUTH, ()),
            allow_partial=config.allow_partial,
            patients_by=config.patients_by,
        )
    except DataError as error:
        raise DataError(f"{error} ({notes[0]})" if notes else str(error)) from None  # what is missing may have been left out
    for case in cases:
        _refuse_unmeasurable(case.reference)
    return cases, [*notes, *lines]


def _refuse_unmeasurable(reference: Images) -> None:
    series = reference.series
    if min(series.shape) < FEWEST_PIXELS:
        raise DataError(
            f"{reference.name} has {series.shape[0]} × {series.shape[1]} pixels, expected {FEWEST_PIXELS} or more a side"
        )
    if not np.isclose(*series.pixel_mm, rtol=1e-3):
        y_mm, x_mm = series.pixel_mm
        raise DataError(f"{reference.name} has pixels of {y_mm:g} × {x_mm:g} mm, expected square ones; resample all images")


# --- measuring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A few slices of one case."""

    case: Case
    numbers: tuple[int, ...]
    config: EvaluateConfig


def _measured(
    config: EvaluateConfig, cases: Sequence[Case], *, jobs: int, progress: Progress
) -> tuple[list[SliceRow], list[SpectrumRow]]:
    """The rows of all cases, in order of patient, series, slice and method; and their noise power."""
    tasks = [
        _Task(case, case.slices[start : start + CHUNK], config) for case in cases for start in range(0, len(case.slices), CHUNK)
    ]
    total = sum(len(case.slices) for case in cases)
    rows: list[SliceRow] = []
    spectra: list[SpectrumRow] = []
    progress("measuring", 0, total)
    for found, curves in map(_measure, tasks) if jobs == 1 else in_processes(_measure, tasks, workers=jobs):
        rows += found
        spectra += curves
        progress("measuring", len(rows) // len(config.methods), total)
    patients = {case.patient: place for place, case in enumerate(cases)}
    methods = {name: place for place, name in enumerate((REFERENCE, *config.methods))}
    rows.sort(key=lambda row: (patients[row["patient"]], row["series"], row["slice"], methods[row["method"]]))
    # Sums must not depend on which process was quicker.
    spectra.sort(key=lambda row: (patients[row["patient"]], methods[row["method"]], row["slice"], row["curve"].power))
    return rows, spectra


def _measure(task: _Task) -> tuple[list[SliceRow], list[SpectrumRow]]:
    case, config = task.case, task.config
    pixel_mm = case.reference.series.pixel_mm[0]
    rows: list[SliceRow] = []
    spectra: list[SpectrumRow] = []
    for number in task.numbers:
        z_mm = float(case.heights_mm[number])
        reference = case.reference.slice_hu(number)
        images = {name: placed.slice_hu(number) for name, placed in case.methods.items()}
        for name, hu in {REFERENCE: reference, **images}.items():
            if hu.min() == hu.max():
                raise DataError(
                    f"{name}: the slice of {case.patient} at z = {z_mm:.2f} mm is constant, {hu.min():g} HU everywhere, expected a "
                    "CT image; take it away, and go on with --allow-partial"
                )
        metrics = evaluate_slice(
            reference,
            images,
            pixel_mm=pixel_mm,
            protocols=config.protocols,
            band=Band(*config.band, config.band_unit),
            truth_hu=None if case.truth is None else case.truth.slice_hu(number),
        )
        rows += [
            SliceRow(patient=case.patient, series=case.series, slice=number, z_mm=z_mm, method=name, metrics=metrics[name])
            for name in config.methods
        ]
        spectra += [
            SpectrumRow(patient=case.patient, slice=number, method=name, curve=curve)
            for name, curve in slice_spectra(reference, images, pixel_mm=pixel_mm).items()
        ]
    return rows, spectra


# --- summing up ----------------------------------------------------------------------------------------------------------


def _evaluation(
    config: EvaluateConfig,
    cases: Sequence[Case],
    rows: Sequence[SliceRow],
    spectra: Sequence[SpectrumRow],
    notes: Sequence[str],
) -> Evaluation:
    infinite = _n_infinite(rows)
    per_patient = {
        method: {
            metric: {patient: _or_infinite(value, infinite[method, metric, patient]) for patient, value in patients.items()}
            for metric, patients in metrics.items()
        }
        for method, metrics in by_patient(rows).items()
    }
    n_infinite = {
        method: {metric: sum(infinite[method, metric, patient] for patient in patients) for metric, patients in metrics.items()}
        for method, metrics in per_patient.items()
    }
    measures = {
        method: {metric: replace(one, mean=_or_infinite(one.mean, n_infinite[method][metric])) for metric, one in metrics.items()}
        for method, metrics in summarise(rows).items()
    }
    n_slices = sum(len(case.slices) for case in cases)
    for method, metrics in spectral_by_patient(spectra).items():
        per_patient[method] |= metrics
        n_infinite[method] |= dict.fromkeys(metrics, 0)
        measures[method] |= {metric: _spectral_summary(values, method, spectra, n_slices) for metric, values in metrics.items()}
    patients: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        patients.setdefault(case.patient, []).append(_facts(case))
    nps = {name: pooled_nps([row["curve"] for row in of]) for name in (REFERENCE, *config.methods) if (of := _of(name, spectra))}
    found = Evaluation(config, patients, rows, measures, per_patient, n_infinite, {}, nps, _views(config, cases, rows), ())
    return replace(
        found,
        comparisons=_comparisons(found),
        notes=[*notes, *_notes_on_protocols(config), *_notes_on_infinite(n_infinite), *_notes_on_pixels(config, patients)],
    )


def _of(method: str, spectra: Iterable[SpectrumRow]) -> list[SpectrumRow]:
    return [row for row in spectra if row["method"] == method]


def _spectral_summary(values: Mapping[str, float], method: str, spectra: Iterable[SpectrumRow], n_slices: int) -> Summary:
    """A measure of noise power over patients, of whom each has one spectrum of all its slices with soft tissue."""
    known = np.array([value for value in values.values() if math.isfinite(value)])
    n_used = len(_of(method, spectra))
    return Summary(
        mean=float(known.mean()) if len(known) else math.nan,
        sd=float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        n_patients=len(known),
        n_slices=n_used,
        n_excluded=n_slices - n_used,
    )


def _n_infinite(rows: Iterable[SliceRow]) -> Counter[tuple[str, str, str]]:
    """Slices on which a metric is infinite, by method, metric and patient."""
    return Counter(
        (row["method"], metric, row["patient"]) for row in rows for metric, value in row["metrics"].items() if math.isinf(value)
    )


def _or_infinite(mean: float, n_infinite: int) -> float:
    """The mean of the finite values; infinity where there are none but infinite ones."""
    return math.inf if math.isnan(mean) and n_infinite else mean


def _facts(case: Case) -> dict[str, Any]:
    series, heights = case.reference.series, case.heights_mm[list(case.slices)]
    return {
        "series": case.series,
        "n_slices": len(series),
        "n_measured": len(case.slices),
        "shape": list(series.shape),
        "pixel_mm": [float(mm) for mm in series.pixel_mm],
        "slice_mm": float(series.slice_mm),
        "z_mm": [float(heights.min()), float(heights.max())],
        "kernel": kernel_of(series),
        "kernels": {name: kernel_of(placed.images.series) for name, placed in case.methods.items()},
    }


def _comparisons(found: Evaluation) -> dict[str, dict[str, PairedComparison]]:
    config = found.config
    if not config.baselines:
        return {}
    return {
        metric: compare_with_each(
            found.values_of(config.proposed, metric),
            {name: found.values_of(name, metric) for name in config.baselines},
            seed=config.seed,
        )
        for metric in compared_metrics(config)
        if metric in found.per_patient[config.proposed]
    }


def _notes_on_protocols(config: EvaluateConfig) -> list[str]:
    return [f"protocol {name}: {caution}" for name in config.protocols if (caution := protocol_named(name).caution)]


def _notes_on_infinite(n_infinite: Mapping[str, Mapping[str, int]]) -> list[str]:
    most = {method: max(counts.values(), default=0) for method, counts in n_infinite.items()}
    return [
        f"{method}: identical to the reference, within a protocol's interval, on {n} slices; their PSNR is infinite and in no mean"
        for method, n in most.items()
        if n
    ]


def _notes_on_pixels(config: EvaluateConfig, patients: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    sizes = [series["pixel_mm"][0] for each in patients.values() for series in each]
    if config.band_unit == "cycles_per_mm" or max(sizes) < 1.02 * min(sizes):
        return []
    return [
        f"pixels of {min(sizes):.3g} to {max(sizes):.3g} mm: the band, in fractions of Nyquist, means other frequencies in each; "
        "--band-unit cycles_per_mm holds it fixed"
    ]


def _views(config: EvaluateConfig, cases: Sequence[Case], rows: Sequence[SliceRow]) -> list[SliceImages]:
    """The slices on which the proposed method has the lowest, the middle and the highest PSNR of the first protocol."""
    key = f"psnr_db[{config.protocols[0]}]"
    measured = (row for row in rows if row["method"] == config.proposed)
    known = (row for row in measured if not math.isnan(row["metrics"][key]))  # the protocol's mask may find no body
    ranked = sorted(known, key=lambda row: row["metrics"][key])
    if not ranked:
        return []
    chosen = {0: "lowest", (len(ranked) - 1) // 2: "median", len(ranked) - 1: "highest"}
    by_name = {(case.patient, case.series): case for case in cases}
    views = []
    for place, words in chosen.items():
        row = ranked[place]
        case, number = by_name[row["patient"], row["series"]], row["slice"]
        images = {REFERENCE: case.reference.slice_hu(number)}
        images |= {name: case.methods[name].slice_hu(number) for name in config.methods}
        why = f"{words} PSNR of {config.proposed}"
        views.append(SliceImages(case.patient, number, row["z_mm"], why, case.reference.series.pixel_mm[0], images))
    return views


# --- files ---------------------------------------------------------------------------------------------------------------


def check_folder(out: Path, *, json_file: Path | None = None) -> None:
    """Refuse a folder to write to unless it is new, empty, or an earlier evaluation's, of which only its own files are replaced.

    Args:
        json_file: where results.json goes once more.

    Raises: ConfigError for a file, a folder that holds anything else, or a place that cannot be written to.
    """
    if json_file is not None and json_file.is_dir():
        raise ConfigError(f"{json_file} is a folder; give a file with --json")
    for path in (out, *([json_file] if json_file else [])):
        there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        blocked = next((one for one in path.absolute().parents if one.exists() and not one.is_dir()), None)
        if blocked is not None or not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{path} cannot be written; give another place")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and not (out / MARK).is_file() and any(one.name != UNPACKED for one in out.iterdir()):
        raise ConfigError(f"{out} holds other things than an evaluation; give a new folder with --out")


def write_results(found: Evaluation, out: Path, *, json_file: Path | None = None) -> None:
    """Write results.json, slices.csv, patients.csv and what made them into a folder; each whole or not at all.

    Args:
        json_file: also write results.json there.
    """
    write_whole(out / MARK, "")
    (out / REPORT).unlink(missing_ok=True)  # of other numbers
    text = json.dumps(_plain(results_of(found)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for path in (out / RESULTS, *([json_file] if json_file else [])):
        write_whole(path, text)
    metrics = list(dict.fromkeys(metric for of_method in found.measures.values() for metric in of_method))
    by_slice = [
        [row["patient"], row["series"], row["slice"], f"{row['z_mm']:.3f}", row["method"], *_cells(row["metrics"], metrics)]
        for row in found.rows
    ]
    write_whole(out / SLICES, _csv(["patient", "series", "slice", "z_mm", "method", *metrics], by_slice))
    counts = {patient: sum(series["n_measured"] for series in each) for patient, each in found.patients.items()}
    by_person = [
        [
            patient,
            method,
            counts[patient],
            *_cells({key: of.get(patient, math.nan) for key, of in found.per_patient[method].items()}, metrics),
        ]
        for patient in found.patients
        for method in found.config.methods
    ]
    write_whole(out / PATIENTS, _csv(["patient", "method", "slices", *metrics], by_person))
    write_provenance(out, found.config)


def results_of(found: Evaluation) -> dict[str, Any]:
    """All that was found as plain data; docs/evaluate.md tells the schema."""
    config = found.config
    return {
        "schema": SCHEMA,
        "finegrain": __version__,
        "title": config.title,
        "reference": REFERENCE,
        "methods": [{"name": name, "kind": "input" if name == INPUT else "candidate"} for name in config.methods],
        "proposed": config.proposed,
        "protocols": {name: asdict(protocol_named(name)) for name in config.protocols},
        "band": {"low": config.band[0], "high": config.band[1], "unit": config.band_unit},
        "patients": found.patients,
        "measures": {
            method: {
                metric: {
                    "mean": one.mean,
                    "sd": one.sd,
                    "n_patients": one.n_patients,
                    "n_slices": one.n_slices,
                    "n_excluded": one.n_excluded,
                    "n_infinite": found.n_infinite[method][metric],
                }
                for metric, one in of_method.items()
            }
            for method, of_method in found.measures.items()
        },
        "per_patient": found.per_patient,
        "comparisons": {
            metric: {baseline: compared.to_dict() for baseline, compared in each.items()}
            for metric, each in found.comparisons.items()
        },
        "nps": {
            name: {"frequency_per_mm": nps.frequency_per_mm.tolist(), "power_hu2_mm2": nps.power.tolist()}
            for name, nps in found.nps.items()
        },
        "rows": found.rows,
        "notes": found.notes,
    }


def _plain(value: Any) -> Any:
    """The same data, fit for JSON: an infinity as the text "inf" or "-inf", NaN as null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _cells(values: Mapping[str, float], metrics: Sequence[str]) -> Iterator[str]:
    """Numbers for a CSV file: empty for NaN and what is not there, inf for infinity."""
    for metric in metrics:
        value = values.get(metric, math.nan)
        yield "" if math.isnan(value) else f"{value:.8g}"


def _csv(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return text.getvalue()
