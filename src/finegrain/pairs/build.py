"""The stage's main path: sources → pairs on disk, in parallel, each pair whole or not there, skipping what is done."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.config import PairsConfig, PhantomSource, ScanSource, Source, Split
from finegrain.errors import DataError, GeometryError
from finegrain.files import write_whole
from finegrain.pairs.manifest import MANIFEST, Pair, read_manifest, split_patients, store_images, write_manifest
from finegrain.scan.read import read_scan
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import Scanner, matching_exposure, scanner_of
from finegrain.simulate.dose import Exposure, scanner_settings
from finegrain.simulate.fbp import find_kernel, resample_and_rekernel
from finegrain.simulate.phantom import VirtualPatient
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM

CHUNK = 12
"""Slices of a scan that one worker takes at a time."""

PHANTOM_SLICE_MM = 3.0
"""Slice thickness that the photons of a phantom scan are those of: it sets how much read-out noise they come with."""

Progress = Callable[[int, int], None]
"""Called with how many tasks are done and how many there are."""


@dataclass(frozen=True)
class _Task:
    """What one worker does at a time: a virtual patient, or a few slices of a scan."""

    source: Source
    patient: str
    split: Split
    index: int
    slices: tuple[int, ...]
    seed: int


def build_pairs(
    config: PairsConfig, folder: Path, *, data_root: Path, workers: int = 2, progress: Progress | None = None
) -> list[Pair]:
    """Make every pair of a configuration, in `folder`; a finished build is read back, a broken one goes on.

    Raises: DataError if the folder holds the pairs of another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "pairs.json"
    if stamp.is_file() and json.loads(stamp.read_text())["hash"] != config.hash():
        raise DataError(f"{folder} holds pairs of another configuration; give another folder or remove it")
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    for kernel in config.named_kernels():
        find_kernel(kernel)
    write_whole(stamp, json.dumps({"hash": config.hash(), "config": config.model_dump(mode="json")}, indent=1))
    tasks = list(_tasks(config, data_root))
    pairs: list[Pair] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_run, task, config, folder, data_root) for task in tasks]
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                pairs += future.result()
                if progress:
                    progress(done, len(tasks))
        finally:
            pool.shutdown(cancel_futures=True)  # else an error of the first task would be told after the last
    pairs.sort(key=lambda pair: pair.key)
    write_manifest(folder, pairs)
    for rows in folder.glob(".*.rows"):
        rows.unlink()
    return read_manifest(folder)


def _tasks(config: PairsConfig, data_root: Path) -> Iterator[_Task]:
    sides = _sides(config)
    for index, source in enumerate(config.sources):
        for patient in _patients(source):
            seed = [config.seed, index]
            if isinstance(source, PhantomSource):
                anatomy = int(patient.rsplit("-", 1)[1])
                yield _Task(source, patient, sides[patient], index, (anatomy,), hash_seed(*seed, anatomy))
            else:
                numbers = range(0, len(_read_cached(data_root / source.path)), source.every)
                for start in range(0, len(numbers), CHUNK):
                    yield _Task(
                        source,
                        patient,
                        sides[patient],
                        index,
                        tuple(numbers[start : start + CHUNK]),
                        hash_seed(*seed, start),
                    )


def hash_seed(*parts: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _patients(source: Source) -> list[str]:
    if isinstance(source, PhantomSource):
        return [f"virtual-{source.first_seed + k:04d}" for k in range(source.patients)]
    return [source.patient]


def _sides(config: PairsConfig) -> dict[str, Split]:
    """Which side each patient stands on; regions of the phantoms are split each for itself, so that all sides see all."""
    sides: dict[str, Split] = {}
    for source in config.sources:
        for patient in _patients(source):
            if source.split and sides.setdefault(patient, source.split) != source.split:
                raise DataError(f"patient {patient} is put into the splits {sides[patient]} and {source.split}; choose one")
    drawn: dict[str, list[str]] = {}
    seen = set(sides)
    for source in config.sources:
        stratum: str = source.region if isinstance(source, PhantomSource) else "scan"
        for patient in _patients(source):
            if patient not in seen:  # the same virtual person may be seen in two regions, and stands on one side with both
                drawn.setdefault(stratum, []).append(patient)
            seen.add(patient)
    for k, stratum in enumerate(sorted(drawn)):
        sides |= split_patients(
            drawn[stratum],
            test_fraction=config.test_fraction,
            validation_fraction=config.validation_fraction,
            generator=np.random.default_rng([config.seed, k]),
        )
    return sides


def _run(task: _Task, config: PairsConfig, folder: Path, data_root: Path) -> list[Pair]:
    rows = folder / f".{task.index:02d}-{task.patient}-{task.slices[0]:04d}.rows"
    if rows.is_file():
        return [Pair(**row) for row in json.loads(rows.read_text())]
    makers = {"phantom": _phantom_pairs, "scan": _scan_pairs}
    pairs = list(makers[task.source.kind](task, config, folder, data_root))
    write_whole(rows, json.dumps([asdict(pair) for pair in pairs]))
    return pairs


def _phantom_pairs(task: _Task, config: PairsConfig, folder: Path, data_root: Path) -> Iterator[Pair]:
    source = task.source
    assert isinstance(source, PhantomSource)
    generator = np.random.default_rng(task.seed)
    pixel_mm = float(generator.uniform(*config.pixel_mm))
    # A body that is cut by the field of view cannot be projected, so small pixels need more of them.
    size = max(config.size, 2 * math.ceil(MIN_FIELD_MM[source.region] / pixel_mm / 2 + 1))
    anatomy = VirtualPatient(seed=task.slices[0], region=source.region).slices(
        source.slices, size=size, pixel_mm=pixel_mm, slice_mm=source.slice_mm
    )
    for number, hu in enumerate(anatomy.hu):
        draw = _Draw.make(config, generator)
        photons = float(np.exp(generator.uniform(*np.log(config.photons))))
        exposure = Exposure(photons=photons, **scanner_settings(PHANTOM_SLICE_MM))
        scanner = Scanner(size=size, pixel_mm=pixel_mm, kernel=find_kernel(draw.kernel), exposure=exposure)
        noise: Literal["independent", "shared"] = "shared" if source.noise == "inserted" else "independent"
        scanned = scanner.scan_phantom(hu, dose_fraction=draw.dose_fraction, generator=generator, noise=noise)
        yield _store(
            folder,
            task,
            number,
            0,
            draw,
            exposure,
            pixel_mm,
            [scanned.low_dose, scanned.normal_dose, scanned.truth],
            source.region,
        )


def _scan_pairs(task: _Task, config: PairsConfig, folder: Path, data_root: Path) -> Iterator[Pair]:
    source = task.source
    assert isinstance(source, ScanSource)
    volume = _read_cached(data_root / source.path)
    if not volume.has_square_pixels:
        y_mm, x_mm = volume.pixel_mm
        raise GeometryError(f"pairs need square pixels, got {y_mm:.4g} × {x_mm:.4g} mm in {source.path}")
    generator = np.random.default_rng(task.seed)
    own = find_kernel(source.own_kernel) if source.own_kernel else None
    for number in task.slices:
        for repeat in range(source.repeats):
            draw = _Draw.make(config, generator, kernels=source.kernels)
            kernel = find_kernel(draw.kernel)
            hu = np.where(volume.padding[number], np.float32(-1000), np.maximum(volume.hu[number], -1024))
            pixel_mm = float(generator.uniform(*config.pixel_mm)) or float(volume.pixel_mm[0])
            hu, pixel_mm = resample_and_rekernel(
                hu, pixel_mm=volume.pixel_mm[0], new_pixel_mm=pixel_mm, own=own, target=kernel if own else None
            )
            one = CTVolume.from_array(hu[None], pixel_mm=pixel_mm, slice_mm=volume.thickness_mm)
            try:
                exposure = matching_exposure(one, kernel=kernel)
            except GeometryError:
                continue  # too little soft tissue to tell the noise of this slice, so its dose cannot be known
            scanner = scanner_of(one, kernel=kernel, exposure=exposure)
            low_dose = hu + scanner.missing_noise_hu(hu, dose_fraction=draw.dose_fraction, generator=generator)
            yield _store(folder, task, number, repeat, draw, exposure, pixel_mm, [low_dose, hu], "scan")


@dataclass(frozen=True)
class _Draw:
    kernel: str
    dose_fraction: float

    @classmethod
    def make(cls, config: PairsConfig, generator: np.random.Generator, *, kernels: tuple[str, ...] = ()) -> _Draw:
        kernels = kernels or config.kernels
        kernel = kernels[generator.integers(len(kernels))]
        return cls(kernel, config.dose_fractions[generator.integers(len(config.dose_fractions))])


def _store(
    folder: Path,
    task: _Task,
    number: int,
    repeat: int,
    draw: _Draw,
    exposure: Exposure,
    pixel_mm: float,
    images: list[NDArray[np.float32]],
    region: str,
) -> Pair:
    key = f"{task.index:02d}-{task.patient}-{number:04d}-{repeat}"
    pixels = np.clip(np.round(np.stack(images)), -1024, 3071).astype(np.int16)
    pair = Pair(
        key=key,
        patient=task.patient,
        split=task.split,
        source=task.index,
        region=region,
        slice_index=number,
        pixel_mm=round(pixel_mm, 6),
        kernel=draw.kernel,
        dose_fraction=draw.dose_fraction,
        photons=round(exposure.photons),
        seed=task.seed,
        has_truth=len(images) == 3,
        sha256="",
    )
    return replace(pair, sha256=store_images(folder, key, pixels))


@lru_cache(maxsize=2)
def _read_cached(path: Path) -> CTVolume:
    return read_scan(path)
