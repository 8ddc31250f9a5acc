"""One task of a build: a virtual patient or some slices of a scan → images at two doses, measured.

Three kinds. A phantom is noise-free, so both doses are drawn from it; a normal-dose scan gets the noise that it lacks at the low
dose; a collection has both doses already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.config import HEADER_KERNEL, CollectionSource, PairsConfig, PhantomSource, ScanSource, Source
from finegrain.errors import FinegrainError, GeometryError
from finegrain.pairs.collections import PairedScan, Series
from finegrain.pairs.collections.found import without_uids
from finegrain.pairs.manifest import Pair
from finegrain.pairs.qc import fingerprint, measure_pair
from finegrain.pairs.region import slice_features
from finegrain.pairs.store import Made, put_task
from finegrain.scan.series import ScanSeries
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import Scanner, matching_exposure, scanner_of
from finegrain.simulate.dose import Exposure, scanner_settings
from finegrain.simulate.fbp import ReconKernel, find_kernel, kernel_of_header, resample_and_rekernel
from finegrain.simulate.phantom import VirtualPatient
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM

PHANTOM_SLICE_MM = 3.0
"""Slice thickness that the photons of a phantom scan are those of: it sets how much read-out noise they come with."""
PHANTOM_REGIONS = {"shoulder": "neck"}
"""What a phantom shows, where its name is no region of its own."""
STORED_HU = (-1024, 3071)
"""What a store holds: the CT numbers of a scanner with 12 bits. Noise in air ends below, metal above, as it does in its images."""


@dataclass(frozen=True)
class Task:
    """What one worker does at a time.

    Attributes:
        name: of the task in the store; changes with all that decides its pixels.
        config: of the build.
        source, source_index: what it is made from, and which one of the configuration that is.
        patient: label of the patient.
        numbers: slices of the scan or pairs of the collection; of a phantom, its anatomy seed.
        scan: what is to be read.
        seed: of everything random in it.
    """

    name: str
    config: PairsConfig
    source: Source
    source_index: int
    patient: str
    numbers: tuple[int, ...]
    scan: Series | PairedScan | None
    seed: int


@dataclass(frozen=True)
class _Slice:
    """A pair on its way into the store: images in HU, shape (y, x) each, and the facts of its row."""

    number: int
    repeat: int
    images: tuple[NDArray[np.float32], ...]
    padding: NDArray[np.bool_] | None
    facts: dict[str, object]


def run_task(task: Task, folder: Path) -> None:
    """Make the pairs of a task and store them.

    A scan of many that cannot be read is left out with its reason; one that the configuration names by itself is an error.
    """
    makers = {"phantom": _phantom_pairs, "scan": _simulated_pairs, "collection": _real_pairs}
    left_out: list[str] = []
    found: list[_Slice] = []
    try:
        found = list(makers[task.source.kind](task, left_out))
    except FinegrainError as error:
        if isinstance(task.source, PhantomSource) or (isinstance(task.source, ScanSource) and task.source.patient):
            raise
        left_out = [f"{task.patient}, slices {task.numbers[0]} to {task.numbers[-1]}: {without_uids(str(error))}"]
    stored = [np.clip(np.round(np.stack(one.images)), *STORED_HU).astype(np.int16) for one in found]
    pairs = [_pair(task, one, images) for one, images in zip(found, stored, strict=True)]
    features = [_features(task, one) for one in found]
    put_task(folder, task.name, stored, Made(pairs, features, left_out))


def _pair(task: Task, one: _Slice, images: NDArray[np.int16]) -> Pair:
    low_dose, normal_dose = images[:2].astype(np.float32)
    pixel_mm = one.facts["pixel_mm"]
    assert isinstance(pixel_mm, float)
    noise = one.facts.get("noise")
    return Pair.model_validate(
        {
            "key": f"{task.name}-{one.number:05d}-{one.repeat}",
            "patient": task.patient,
            "source": task.source_index,
            "slice_index": one.number,
            "rows": images.shape[1],
            "columns": images.shape[2],
            "has_truth": len(images) == 3,
            "fingerprint": fingerprint(normal_dose),
            "quality": measure_pair(low_dose, normal_dose, pixel_mm=pixel_mm, noise=noise, padding=one.padding),  # type: ignore[arg-type]
            **one.facts,
        }
    )


def _features(task: Task, one: _Slice) -> list[float]:
    if isinstance(task.source, PhantomSource):
        return []
    return list(astuple(slice_features(one.images[1], pixel_mm=float(one.facts["pixel_mm"]))))  # type: ignore[arg-type]


# --- the three kinds -----------------------------------------------------------------------------------------------------


def _phantom_pairs(task: Task, left_out: list[str]) -> Iterator[_Slice]:
    source, config = task.source, task.config
    assert isinstance(source, PhantomSource)
    generator = np.random.default_rng(task.seed)
    pixel_mm = float(generator.uniform(*config.pixel_mm))
    # A body that is cut by the field of view cannot be projected, so small pixels need more of them.
    size = max(config.size, 2 * math.ceil(MIN_FIELD_MM[source.region] / pixel_mm / 2 + 1))
    anatomy = VirtualPatient(seed=task.numbers[0], region=source.region).slices(
        source.slices, size=size, pixel_mm=pixel_mm, slice_mm=source.slice_mm
    )
    for number, hu in enumerate(anatomy.hu):
        draw = _Draw.make(config, generator)
        photons = float(np.exp(generator.uniform(*np.log(config.photons))))
        exposure = Exposure(photons=photons, **scanner_settings(PHANTOM_SLICE_MM))
        scanner = Scanner(size=size, pixel_mm=pixel_mm, kernel=find_kernel(draw.kernel), exposure=exposure)
        noise: Literal["independent", "shared"] = "shared" if source.noise == "inserted" else "independent"
        scanned = scanner.scan_phantom(hu, dose_fraction=draw.dose_fraction, generator=generator, noise=noise)
        facts = {
            "collection": "phantom",
            "region": PHANTOM_REGIONS.get(source.region, source.region),
            "pixel_mm": round(pixel_mm, 6),
            "slice_mm": PHANTOM_SLICE_MM,
            "z_mm": number * source.slice_mm,
            "kernel": draw.kernel,
            "dose_fraction": draw.dose_fraction,
            "noise": source.noise,
            "photons": round(exposure.photons),
            "seed": task.seed,
        }
        yield _Slice(number, 0, (scanned.low_dose, scanned.normal_dose, scanned.truth), None, facts)


def _simulated_pairs(task: Task, left_out: list[str]) -> Iterator[_Slice]:
    source, config, series = task.source, task.config, task.scan
    assert isinstance(source, ScanSource) and series is not None and not isinstance(series, PairedScan)
    generator = np.random.default_rng(task.seed)
    own = find_kernel(source.own_kernel) if source.own_kernel else None
    for number, volume in _read_each(series, task.numbers):
        _refuse_flat_pixels(volume)
        padding = volume.padding[0]
        for repeat in range(source.repeats):
            draw = _Draw.make(config, generator, kernels=source.kernels)
            kernel = _kernel(draw.kernel, volume)
            hu = np.where(padding, np.float32(-1000), np.maximum(volume.hu[0], -1024))
            pixel_mm = float(generator.uniform(*config.pixel_mm)) or float(volume.pixel_mm[0])
            hu, pixel_mm = resample_and_rekernel(
                hu, pixel_mm=volume.pixel_mm[0], new_pixel_mm=pixel_mm, own=own, target=kernel if own else None
            )
            one = CTVolume.from_array(hu[None], pixel_mm=pixel_mm, slice_mm=volume.thickness_mm)
            try:
                exposure = matching_exposure(one, kernel=kernel)
            except GeometryError:
                left_out.append(f"{task.patient}, slice {number}: too little soft tissue to tell the noise, and the dose with it")
                continue
            scanner = scanner_of(one, kernel=kernel, exposure=exposure)
            low_dose = hu + scanner.missing_noise_hu(hu, dose_fraction=draw.dose_fraction, generator=generator)
            facts = {
                "collection": "scan",
                "pixel_mm": round(pixel_mm, 6),
                "kernel": kernel.name,
                "dose_fraction": draw.dose_fraction,
                "noise": "inserted",
                "photons": round(exposure.photons),
                "seed": task.seed,
                **_scan_facts(volume),
            }
            kept = None if hu.shape != padding.shape else padding
            yield _Slice(number, repeat, (low_dose, hu), kept, facts)


def _real_pairs(task: Task, left_out: list[str]) -> Iterator[_Slice]:
    scan = task.scan
    assert isinstance(task.source, CollectionSource) and isinstance(scan, PairedScan)
    for number, low_dose, normal_dose in _read_pairs(scan, task, left_out):
        _refuse_flat_pixels(normal_dose)
        facts = {
            "collection": scan.collection,
            "pixel_mm": round(float(normal_dose.pixel_mm[0]), 6),
            "kernel": scan.kernel,
            "dose_fraction": scan.dose_fraction,
            "noise": scan.noise,
            **_scan_facts(normal_dose),
        }
        yield _Slice(number, 0, (low_dose.hu[0], normal_dose.hu[0]), low_dose.padding[0] | normal_dose.padding[0], facts)


def _read_pairs(scan: PairedScan, task: Task, left_out: list[str]) -> Iterator[tuple[int, CTVolume, CTVolume]]:
    """The pairs of a task at once; one by one if something is wrong, so that one damaged file takes no other with it."""
    try:
        low_dose, normal_dose = scan.read(task.numbers)
    except FinegrainError as error:
        if len(task.numbers) == 1:
            left_out.append(f"{task.patient}, slice {task.numbers[0]}: {without_uids(str(error))}")
            return
        for number in task.numbers:
            yield from _read_pairs(scan, replace(task, numbers=(number,)), left_out)
        return
    for k, number in enumerate(task.numbers):
        yield number, low_dose.part(slice(k, k + 1)), normal_dose.part(slice(k, k + 1))


def _kernel(name: str, volume: CTVolume) -> ReconKernel:
    return kernel_of_header(str(volume.acquisition.get("ConvolutionKernel", ""))) if name == HEADER_KERNEL else find_kernel(name)


def _read_each(series: Series, numbers: tuple[int, ...]) -> Iterator[tuple[int, CTVolume]]:
    """The slices one by one: a series of files is read file by file, a volume in one file at once."""
    if isinstance(series, ScanSeries) and series.kind == "dicom":
        for number in numbers:
            yield number, series.read(slice(number, number + 1))
        return
    volume = series.read(slice(numbers[0], numbers[-1] + 1))
    for number in numbers:
        yield number, volume.part(slice(number - numbers[0], number - numbers[0] + 1))


def _refuse_flat_pixels(volume: CTVolume) -> None:
    if not volume.has_square_pixels:
        y_mm, x_mm = volume.pixel_mm
        raise GeometryError(f"pairs need square pixels, got {y_mm:.4g} × {x_mm:.4g} mm; resample the scan")


def _scan_facts(volume: CTVolume) -> dict[str, object]:
    """Facts of a row that the header of a slice tells."""
    normal = np.cross(volume.orientation[:3], volume.orientation[3:])
    kvp = volume.acquisition.get("KVP")
    return {
        "z_mm": float(volume.positions_mm[0] @ normal),
        "slice_mm": volume.thickness_mm,
        "kvp": float(kvp) if isinstance(kvp, int | float) else None,
        "manufacturer": str(volume.acquisition.get("Manufacturer", "")),
    }


@dataclass(frozen=True)
class _Draw:
    kernel: str
    dose_fraction: float

    @classmethod
    def make(cls, config: PairsConfig, generator: np.random.Generator, *, kernels: tuple[str, ...] = ()) -> _Draw:
        kernels = kernels or config.kernels
        kernel = kernels[generator.integers(len(kernels))]
        return cls(kernel, config.dose_fractions[generator.integers(len(config.dose_fractions))])
