"""The stage's main path: sources → pairs on disk, in parallel, each task whole or not there, skipping what is done.

A task is a virtual patient, or a few slices of a scan. Its name holds a hash of all that decides its pixels, so that sources can be
added to a store later: what was built stays as it is. What needs to see all pairs (verdicts, regions, the split) comes last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from finegrain import __version__
from finegrain.config import (
    HEADER_KERNEL,
    CollectionSource,
    PairsConfig,
    PairsInput,
    PhantomSource,
    ScanSource,
    Source,
    Split,
    config_of,
    load_config,
)
from finegrain.errors import ConfigError, DataError
from finegrain.files import write_whole
from finegrain.pairs.collections import PairedScan, Series, find_pairs, find_scans
from finegrain.pairs.collections.found import find_usable_series
from finegrain.pairs.inspect import judged
from finegrain.pairs.make import Task, run_task
from finegrain.pairs.manifest import MANIFEST, Pair, check_split, read_manifest, split_patients, write_manifest
from finegrain.pairs.qc import judge
from finegrain.pairs.region import SliceFeatures, classify
from finegrain.pairs.store import SPLITS, Made, done_tasks, get_task, is_done, locked, remove_task
from finegrain.parallel import in_processes
from finegrain.provenance import write_provenance
from finegrain.scan.series import ScanSeries
from finegrain.simulate.fbp import find_kernel

CHUNK = 16
"""Slices of a scan that one worker takes at a time; their pixels are held until their shard is written."""
FORMAT = 2
"""Of the store; changes when the same configuration gives other pixels or rows, and every task is then made anew."""
STAMP, NOTES = "pairs.json", "notes.txt"

Progress = Callable[[int, int], None]
"""Called with how many tasks are done and how many there are."""


@dataclass(frozen=True)
class Unit:
    """One series of one patient, or one virtual patient: what regions are found over, and what is cut into tasks.

    Attributes:
        source, source_index: of the configuration.
        patient: a label that is safe to show.
        stratum: patients of one stratum are split among themselves.
        split: the side that is prescribed, if any.
        scan: what is to be read; None for a phantom.
        numbers: slices, or pairs, of the scan that are wanted; of a phantom, its anatomy seed.
        tag: BodyPartExamined of the header.
    """

    source: Source
    source_index: int
    patient: str
    stratum: str
    split: Split | None
    scan: Series | PairedScan | None
    numbers: tuple[int, ...]
    tag: str | None = None

    def tasks(self, config: PairsConfig) -> Iterator[Task]:
        """Its tasks, in order; the same for the same scan, wherever it lies and whatever else is built."""
        kernels = [repr(find_kernel(name)) for name in _kernels(config, self.source)]
        for start in range(0, len(self.numbers), CHUNK):
            numbers = self.numbers[start : start + CHUNK]
            decides = {
                "format": FORMAT,
                "source": self.source.model_dump(exclude=UNDECISIVE[self.source.kind]),
                "config": config.model_dump(include=DECISIVE[self.source.kind]),
                "kernels": kernels,
                "patient": self.patient,
                "version": __version__,
                "scan": _identity(self.scan, numbers) if self.scan else "",
                "stated": (self.scan.dose_fraction, self.scan.noise) if isinstance(self.scan, PairedScan) else (),
                "numbers": numbers,
            }
            name = f"{self.patient}-{_digest(decides)[:12]}"
            # Not of the name's digest, which a new version of the program or a new setting changes: what was drawn once can be
            # drawn again, years later.
            draws = (config.seed, self.patient, _drawn_for(self.source), _instances(self.scan, numbers) if self.scan else numbers)
            seed = int(_digest(draws)[-8:], 16)
            yield Task(name, config, self.source, self.source_index, self.patient, numbers, self.scan, seed)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _drawn_for(source: Source) -> Any:
    """What of a source gives other random numbers: all of a phantom that one virtual patient may be made with."""
    return (source.region, source.slices, source.slice_mm, source.noise) if isinstance(source, PhantomSource) else source.kind


def _instances(scan: Series | PairedScan, numbers: Sequence[int]) -> Any:
    """What names these slices, however their files were written."""
    if isinstance(scan, ScanSeries) and scan.kind == "dicom" and len(scan.instance_uids) == len(scan):
        return [scan.instance_uids[number] for number in numbers]
    return scan.fingerprint, numbers


def _identity(scan: Series | PairedScan, numbers: Sequence[int]) -> Any:
    """What changes when one of these slices does: their instances and file sizes, or the fingerprint of a volume in one file."""
    if isinstance(scan, PairedScan):
        low_dose = _identity(scan.low_dose, [scan.low_slices[number] for number in numbers])
        return low_dose, _identity(scan.normal_dose, [scan.normal_slices[number] for number in numbers])
    if isinstance(scan, ScanSeries) and scan.kind == "dicom" and len(scan.files) == len(scan.instance_uids) == len(scan):
        return [(scan.instance_uids[number], scan.files[number].stat().st_size) for number in numbers]
    return scan.fingerprint


UNDECISIVE = {
    "phantom": {"patients", "first_seed", "split"},
    "scan": {"path", "patient", "split"},
    "collection": {"path", "low_dose", "normal_dose", "layout", "split"},
}
"""What of a source does not change the pixels of one of its tasks."""
DECISIVE = {
    "phantom": {"dose_fractions", "kernels", "photons", "size", "pixel_mm", "seed"},
    "scan": {"dose_fractions", "kernels", "pixel_mm", "seed"},
    "collection": set[str](),
}
"""What of the configuration does."""


def _kernels(config: PairsConfig, source: Source) -> list[str]:
    """The reconstruction kernels that a source may be simulated with."""
    if isinstance(source, CollectionSource):
        return []
    own = [*source.kernels, source.own_kernel] if isinstance(source, ScanSource) else []
    return sorted({*config.kernels, *(kernel for kernel in own if kernel)} - {HEADER_KERNEL})


def pairs_of_run(
    run: PairsInput, out: Path, *, data_root: Path, workers: int, progress: Progress | None = None
) -> tuple[list[Pair], Path]:
    """The usable pairs of a run with the output folder `out`, and the store that holds them."""
    if run.store is not None:
        folder = data_root / run.store
        return [pair for pair in read_manifest(folder) if pair.is_usable], folder
    assert run.pairs is not None
    return ready_pairs(run.pairs, out / "pairs", data_root=data_root, workers=workers, progress=progress), out / "pairs"


def ready_pairs(
    config: PairsConfig, folder: Path, *, data_root: Path, workers: int = 2, progress: Progress | None = None
) -> list[Pair]:
    """The usable pairs of a configuration: read back if `folder` holds them, else built; to train and to test on.

    Raises: DataError if the folder holds the pairs of another configuration.
    """
    if (folder / MANIFEST).is_file() and _held_hash(folder) == config.hash():
        return [pair for pair in read_manifest(folder) if pair.is_usable]
    return build_pairs(config, folder, data_root=data_root, workers=workers, progress=progress)


def build_pairs(
    config: PairsConfig, folder: Path, *, data_root: Path, workers: int = 2, progress: Progress | None = None
) -> list[Pair]:
    """Make every pair of a configuration that `folder` does not hold yet, and the manifest anew; gives the usable pairs.

    A build that was stopped goes on. A store can grow: sources that were added, and patients that were added to a source, join
    what is there, and nobody changes sides. Rejected pairs stay in the store and the manifest, with the reason.

    Raises: DataError if the folder holds pairs that this configuration would not make.
    """
    folder = Path(folder)
    if workers < 1:
        raise ConfigError(f"expected at least one worker process, got {workers}")
    with locked(folder):
        units, left_out = find_units(config, data_root)
        plan = [(unit, tuple(unit.tasks(config))) for unit in units]
        tasks = {task.name: task for _, own in plan for task in own}
        _remove_superseded(folder, set(tasks))
        before = _held_sides(folder)
        sides = _sides(config, units, before=before)
        if before and _drawn_otherwise(folder, config):
            left_out.append(
                f"the sides of the {len(before)} patients that were there stay as drawn: seed and fractions are for new ones"
            )
        missing = [task for task in tasks.values() if not is_done(folder, task.name)]
        done = len(tasks) - len(missing)
        if missing or _held_hash(folder) != config.hash():
            (folder / MANIFEST).unlink(missing_ok=True)  # it would not tell of what changes now
        write_provenance(folder, without_paths(config))
        write_whole(folder / SPLITS, json.dumps(sides, indent=1) + "\n")
        for _ in in_processes(partial(run_task, folder=folder), iter(missing), workers=workers):
            done += 1
            if progress:
                progress(done, len(tasks))
        pairs, also_left_out = _decided(config, folder, plan, sides)
        check_split(pairs)
        write_whole(folder / NOTES, "".join(line + "\n" for line in (*left_out, *also_left_out)))
        write_whole(folder / STAMP, json.dumps({"format": FORMAT, "hash": config.hash()}) + "\n")
        write_manifest(folder, pairs)
    return [pair for pair in read_manifest(folder) if pair.is_usable]


def _remove_superseded(folder: Path, tasks: set[str]) -> None:
    """Take out tasks that are no longer wanted and gave nothing, or not all: a file was repaired, or a configuration mended.

    Raises: DataError if others are no longer wanted.
    """
    held = done_tasks(folder)
    foreign = []
    for task in held - tasks:
        try:
            made = get_task(folder, task)
        except DataError:
            made = Made()
        if made.pairs and not made.unreadable:
            foreign.append(task)
    if foreign:
        raise DataError(
            f"{folder} holds pairs of another configuration ({len(foreign)} of {len(held)} parts are not of this one: a source, "
            "its files, the pseudonym key or the version changed); sources may be added, not changed or taken away: give another "
            "folder or remove it"
        )
    for task in held - tasks:
        remove_task(folder, task)


def _drawn_otherwise(folder: Path, config: PairsConfig) -> bool:
    """Whether the split that is there was drawn with another seed or other fractions."""
    try:
        held = load_config(folder / "config.yaml", PairsConfig)
    except ConfigError:
        return False
    return any(getattr(held, name) != getattr(config, name) for name in ("seed", "test_fraction", "validation_fraction"))


def _held_hash(folder: Path) -> str | None:
    """The hash of the configuration that a finished store was built from."""
    try:
        held: dict[str, Any] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held.get("hash") if held.get("format") == FORMAT else None


def _held_sides(folder: Path) -> dict[str, Split]:
    """Where the patients of a store stand, in the order in which they came."""
    try:
        return TypeAdapter(dict[str, Split]).validate_json((folder / SPLITS).read_bytes())
    except FileNotFoundError:
        if (folder / MANIFEST).is_file():
            return {pair.patient: pair.split for pair in read_manifest(folder)}
        return {}
    except (OSError, ValueError):
        raise DataError(
            f"{folder / SPLITS} is damaged; remove it, and it is made again from {MANIFEST}, or build in another folder"
        ) from None


def without_paths(config: PairsConfig) -> PairsConfig:
    """The configuration without the places of its scans: folders are named after patients surprisingly often."""
    sources = tuple(
        source.model_copy(
            update={name: "(not stored)" for name in ("path", "low_dose", "normal_dose") if getattr(source, name, None)}
            | ({"kernels": _names(source.kernels)} if isinstance(source, ScanSource) else {})
            | ({"own_kernel": _names([source.own_kernel])[0]} if isinstance(source, ScanSource) and source.own_kernel else {})
        )
        for source in config.sources
    )
    return config.model_copy(update={"sources": sources, "kernels": _names(config.kernels)})


def _names(kernels: Sequence[str]) -> tuple[str, ...]:
    """The names of kernels, those in files by what the file calls them."""
    return tuple(kernel if kernel == HEADER_KERNEL else find_kernel(kernel).name for kernel in kernels)


def config_of_source(
    source: str,
    *,
    layout: str = "auto",
    dose_fractions: Sequence[float] = (),
    kernel: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> PairsConfig:
    """The configuration of a YAML file, or of a folder or file of scans that needs none.

    Args:
        source: a .yaml file; or the folder or file of a collection of real pairs, or of normal-dose scans to be simulated.
        layout: of the collection.
        dose_fractions: to simulate; none takes the source for a collection.
        kernel: of the simulated noise; that of each scan's header if not given.
        settings: what is to be other than the file, or the defaults, say; None stands for nothing said.

    Raises: ConfigError in one line.
    """
    said = {name: value for name, value in (settings or {}).items() if value is not None}
    path = Path(source)
    if path.suffix.lower() in (".yaml", ".yml"):
        if layout != "auto" or dose_fractions or kernel:
            raise ConfigError("--layout, --dose-fraction and --kernel belong into the YAML file; give them there")
        return config_of(PairsConfig, load_config(path, PairsConfig).model_dump() | said)
    if not path.exists():
        raise ConfigError(f"expected a YAML file, or a folder or file of scans, found nothing at {source}")
    whole = str(path.resolve())
    if dose_fractions:
        if layout != "auto":
            raise ConfigError("--layout is for collections of real pairs, --dose-fraction for scans; give one of them")
        scans = {"kind": "scan", "path": whole, "kernels": (kernel or HEADER_KERNEL,)}
        return config_of(PairsConfig, {"sources": [scans], "dose_fractions": tuple(dose_fractions), "pixel_mm": (0, 0), **said})
    if kernel:
        raise ConfigError("--kernel is for scans that are simulated; give --dose-fraction, too")
    return config_of(PairsConfig, {"sources": [{"kind": "collection", "path": whole, "layout": layout}], **said})


# --- what is there -------------------------------------------------------------------------------------------------------


def find_units(config: PairsConfig, data_root: Path) -> tuple[list[Unit], list[str]]:
    """Everything that the sources hold, by their headers alone, and what was left out with the reason.

    Raises: DataError or ScanError if a source holds nothing that can be used.
    """
    units: list[Unit] = []
    left_out: list[str] = []
    for index, source in enumerate(config.sources):
        if isinstance(source, PhantomSource):
            seeds = range(source.first_seed, source.first_seed + source.patients)
            units += [Unit(source, index, f"virtual-{seed:04d}", source.region, source.split, None, (seed,)) for seed in seeds]
        elif isinstance(source, ScanSource):
            scans, notes = _scans(source, index, data_root)
            unique = {series.fingerprint: (patient, series) for patient, series in reversed(scans)}
            if len(unique) < len(scans):
                left_out.append(f"source {index + 1}: {len(scans) - len(unique)} scans are there twice and count once")
            for patient, series in reversed(unique.values()):
                numbers = tuple(range(0, len(series), source.every))
                tag = str(series.acquisition.get("BodyPartExamined", "")) or None
                units.append(Unit(source, index, patient, "scan", source.split, series, numbers, tag))
            left_out += notes
        else:
            found, more = find_pairs(source, data_root=data_root)
            for scan in found:
                numbers = tuple(range(0, len(scan), source.every))
                tag = str(scan.normal_dose.acquisition.get("BodyPartExamined", "")) or None
                split = source.split or scan.split
                units.append(Unit(source, index, scan.patient, scan.collection, split, scan, numbers, tag))
            left_out += [*more, *(f"patient {scan.patient}: {note}" for scan in found for note in scan.notes)]
    seen: set[tuple[str, str, str]] = set()
    for unit in units:
        identity = (unit.source.kind, unit.stratum + unit.patient, unit.scan.fingerprint if unit.scan else str(unit.source_index))
        if identity in seen:
            raise DataError(f"source {unit.source_index + 1} holds a scan of {unit.patient} that is there already; name it once")
        seen.add(identity)
    return units, left_out


def _scans(source: ScanSource, index: int, data_root: Path) -> tuple[list[tuple[str, Series]], tuple[str, ...]]:
    path = data_root / source.path
    if not path.exists():
        raise DataError(f"source {index + 1}: expected scans at its path, found nothing; relative paths start at the data root")
    if source.patient is None:
        return find_scans(path)
    series, left_out = find_usable_series(path)
    if len(series) != 1:
        found = f"found {len(series)}" + (f" (left out: {left_out[0]})" if left_out and not series else "")
        raise DataError(
            f"the scan of patient {source.patient} must be one CT series, {found}; give the folder of one, or leave the patient "
            "out to take them all"
        )
    return [(source.patient, series[0])], tuple(left_out)


def _sides(config: PairsConfig, units: list[Unit], *, before: dict[str, Split] | None = None) -> dict[str, Split]:
    """Which side each patient stands on; each stratum is split for itself, so that all sides see all of them."""
    fixed: dict[str, Split] = {}
    for unit in units:
        if unit.split and fixed.setdefault(unit.patient, unit.split) != unit.split:
            raise DataError(f"patient {unit.patient} is put into the splits {fixed[unit.patient]} and {unit.split}; choose one")
    for patient, side in fixed.items():
        if before and before.get(patient, side) != side:
            raise DataError(
                f"patient {patient} was in the split {before[patient]} and is now put into {side}; build in a new folder"
            )
    drawn: dict[str, list[str]] = {}
    seen = set(fixed)
    for unit in units:
        if unit.patient not in seen:  # the same person may be seen in two strata, and stands on one side with both
            drawn.setdefault(unit.stratum, []).append(unit.patient)
            seen.add(unit.patient)
    sides = {**(before or {}), **fixed}
    for k, stratum in enumerate(sorted(drawn)):
        sides |= split_patients(
            drawn[stratum],
            test_fraction=config.test_fraction,
            validation_fraction=config.validation_fraction,
            generator=np.random.default_rng([config.seed, k]),
            before=before,
        )
    return sides


# --- what needs to see all pairs -----------------------------------------------------------------------------------------


def _decided(
    config: PairsConfig, folder: Path, plan: list[tuple[Unit, tuple[Task, ...]]], sides: dict[str, Split]
) -> tuple[list[Pair], list[str]]:
    """All pairs with split, region and verdict, and what was left out."""
    pairs: list[Pair] = []
    left_out: list[str] = []
    for unit, tasks in plan:
        made = [get_task(folder, task.name) for task in tasks]
        decided = {"split": sides[unit.patient], "source": unit.source_index}
        pairs += [pair.model_copy(update=decided) for pair in _with_regions(made, unit.tag)]
        left_out += [line for one in made for line in (*one.left_out, *one.unreadable)]
    if not pairs:
        raise DataError("no pair could be made of the sources: " + (left_out[0] if left_out else "they hold no slice"))
    # Of a picture under two patients the first is kept: that of the patient who came first, so that growth takes none away.
    came = {patient: k for k, patient in enumerate(sides)}
    order = sorted(range(len(pairs)), key=lambda k: came[pairs[k].patient])
    for k, verdict in zip(order, judge([judged(pairs[k]) for k in order]), strict=True):
        if config.qc == "reject" or "duplicate" in verdict.reasons:  # which would be a leak between the sides
            pairs[k] = pairs[k].model_copy(update={"verdict": verdict.status, "reasons": "; ".join(verdict.reasons)})
    return pairs, left_out


def _with_regions(made: list[Made], tag: str | None) -> list[Pair]:
    """The pairs of one series, each slice with its region: what it shows, in the order of the body."""
    pairs = [pair for one in made for pair in one.pairs]
    features = {
        pair.slice_index: SliceFeatures(*found)
        for one in made
        for pair, found in zip(one.pairs, one.features, strict=True)
        if found
    }
    if not features:
        return pairs
    z_mm = {pair.slice_index: float(pair.z_mm or 0.0) for pair in pairs}
    numbers = sorted(features, key=z_mm.__getitem__)
    regions = classify([features[number] for number in numbers], np.array([z_mm[number] for number in numbers]), body_part=tag)
    found = dict(zip(numbers, regions, strict=True))
    return [
        pair.model_copy(
            update={"region": found[pair.slice_index].region, "region_confidence": round(found[pair.slice_index].confidence, 3)}
        )
        for pair in pairs
    ]
