"""One task of a build: a virtual patient or some slices of a scan → images at two doses, measured.

Three kinds. A phantom is noise-free, so both doses are drawn from it; a normal-dose scan gets the noise that it lacks at the low
dose; a collection has both doses already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.config import HEADER_KERNEL, PairsConfig, PhantomSource, ScanSource, Source
from finegrain.errors import FinegrainError, GeometryError
from finegrain.pairs.collections import PairedScan, Series
from finegrain.pairs.collections.found import without_uids
from finegrain.pairs.manifest import Pair
from finegrain.pairs.qc import fingerprint, measure_pair
from finegrain.pairs.region import slice_features
from finegrain.pairs.store import Made, put_task
from finegrain.scan.series import ScanSeries
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import BODY_HU, MOST_OUTSIDE, Scanner, matching_exposure, scanner_of
from finegrain.simulate.dose import Exposure, scanner_settings
from finegrain.simulate.fbp import ReconKernel, find_kernel, kernel_of_header, resample_and_rekernel
from finegrain.simulate.geometry import pixels_from_isocentre
from finegrain.simulate.phantom import VirtualPatient
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM, PhantomVolume

PHANTOM_SLICE_MM = 3.0
"""Slice thickness that the photons of a phantom scan are those of: it sets how much read-out noise they come with."""
PHANTOM_REGIONS = {"shoulder": "neck"}
"""What a phantom shows, where its name is no region of its own."""
VENDORS = ("Siemens", "GE", "Philips", "Toshiba", "Canon", "Hitachi", "Fujifilm", "Neusoft", "United Imaging", "Samsung", "Imatron")
"""Makers of CT scanners, as their headers name them."""
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

    A slice that cannot be read is left out with its reason, and tried again by the next build; of a scan that the configuration
    names by itself it is an error.
    """
    named = isinstance(task.source, ScanSource) and task.source.patient is not None
    made, stored = Made(), []
    wrong: dict[str, list[int]] = {}
    for number, slices in _slices(task, made.left_out):
        try:
            for one in slices():
                images = np.clip(np.round(np.stack(one.images)), *STORED_HU).astype(np.int16)
                pair, features = _pair(task, one, images), _features(task, one)
                stored.append(images)
                made.pairs.append(pair)
                made.features.append(features)
        except FinegrainError as error:
            if named or isinstance(task.source, PhantomSource):
                raise
            wrong.setdefault(without_uids(str(error)), []).append(number)
    made.unreadable.extend(f"{task.patient}, slices {_ranges(numbers)}: {reason}" for reason, numbers in wrong.items())
    put_task(folder, task.name, stored, made)


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in words.

    >>> _ranges([0, 1, 2, 5])
    '0–2, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _slices(task: Task, left_out: list[str]) -> Iterator[tuple[int, Callable[[], Iterator[_Slice]]]]:
    """Each slice's number, and what reads it and makes its pairs: so that what is wrong with one takes no other with it."""
    if isinstance(task.source, PhantomSource):
        yield task.numbers[0], partial(_phantom_pairs, task)
    elif isinstance(task.scan, PairedScan):
        read_pair = _pair_reader(task.scan, task.numbers)
        for number in task.numbers:
            yield number, partial(_real_pair, task, number, read_pair)
    else:
        assert task.scan is not None
        read = _slice_reader(task.scan, task.numbers)
        for number in task.numbers:
            yield number, partial(_simulated_pairs, task, number, read, left_out)


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
            "quality": measure_pair(low_dose, normal_dose, pixel_mm=pixel_mm, noise=noise, padding=one.padding),  # type: ignore[arg-type]
            **({} if "fingerprint" in one.facts else {"fingerprint": fingerprint(normal_dose)}),
            **one.facts,
        }
    )


def _features(task: Task, one: _Slice) -> list[float]:
    if isinstance(task.source, PhantomSource):
        return []
    return list(astuple(slice_features(one.images[1], pixel_mm=float(one.facts["pixel_mm"]))))  # type: ignore[arg-type]


# --- the three kinds -----------------------------------------------------------------------------------------------------


def _phantom_pairs(task: Task) -> Iterator[_Slice]:
    source, config = task.source, task.config
    assert isinstance(source, PhantomSource)
    pixel_mm = float(np.random.default_rng(task.seed).uniform(*config.pixel_mm))
    anatomy = _whole_body(task, pixel_mm)
    size = anatomy.hu.shape[-1]
    for number, hu in enumerate(anatomy.hu):
        generator = np.random.default_rng([task.seed, number])  # its own, so that nothing passes from slice to slice
        draw = _Draw.make(config, generator)
        photons = float(np.exp(generator.uniform(*np.log(config.photons))))
        exposure = Exposure(photons=photons, **scanner_settings(PHANTOM_SLICE_MM))
        kernel = find_kernel(draw.kernel)
        scanner = Scanner(size=size, pixel_mm=pixel_mm, kernel=kernel, exposure=exposure)
        noise: Literal["independent", "shared"] = "shared" if source.noise == "inserted" else "independent"
        scanned = scanner.scan_phantom(hu, dose_fraction=draw.dose_fraction, generator=generator, noise=noise)
        facts = {
            "collection": "phantom",
            "region": PHANTOM_REGIONS.get(source.region, source.region),
            "pixel_mm": round(pixel_mm, 6),
            "slice_mm": PHANTOM_SLICE_MM,
            "z_mm": number * source.slice_mm,
            "kernel": kernel.name,  # a file of one may lie in a folder that is called after somebody
            "dose_fraction": draw.dose_fraction,
            "noise": source.noise,
            "photons": round(exposure.photons),
            "seed": task.seed,
        }
        yield _Slice(number, 0, (scanned.low_dose, scanned.normal_dose, scanned.truth), None, facts)


def _whole_body(task: Task, pixel_mm: float) -> PhantomVolume:
    """A virtual patient in as many pixels as it needs: a body that is cut by the field of view cannot be projected."""
    source = task.source
    assert isinstance(source, PhantomSource)
    patient = VirtualPatient(seed=task.numbers[0], region=source.region)
    size = max(task.config.size, 2 * math.ceil(MIN_FIELD_MM[source.region] / pixel_mm / 2 + 1))
    while True:
        anatomy = patient.slices(source.slices, size=size, pixel_mm=pixel_mm, slice_mm=source.slice_mm)
        outside = (anatomy.hu > BODY_HU) & (pixels_from_isocentre(size) > (size - 1) / 2)
        if outside.mean(axis=(1, 2)).max() <= MOST_OUTSIDE:
            return anatomy
        size += 2 * math.ceil(size / 40)  # a few are wider than the field that the others need


def _simulated_pairs(task: Task, number: int, read: Callable[[int], CTVolume], left_out: list[str]) -> Iterator[_Slice]:
    source, config = task.source, task.config
    assert isinstance(source, ScanSource)
    generator = np.random.default_rng([task.seed, number])
    own = find_kernel(source.own_kernel) if source.own_kernel else None
    volume = read(number)
    _refuse_flat_pixels(volume)
    padding = volume.padding[0]
    as_it_is = config.pixel_mm == (0, 0) and own is None
    for repeat in range(source.repeats):
        draw = _Draw.make(config, generator, kernels=source.kernels)
        kernel = _kernel(draw.kernel, volume)
        hu, pixel_mm = np.where(padding, np.float32(-1000), np.maximum(volume.hu[0], -1024)), float(volume.pixel_mm[0])
        if not as_it_is:
            hu, pixel_mm = resample_and_rekernel(
                hu,
                pixel_mm=pixel_mm,
                new_pixel_mm=float(generator.uniform(*config.pixel_mm)) or pixel_mm,
                own=own,
                target=kernel if own else None,
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
            "fingerprint": fingerprint(volume.hu[0]),  # before resampling, after which the same scan looks like another one
            "pixel_mm": round(pixel_mm, 6),
            "kernel": kernel.name,
            "dose_fraction": draw.dose_fraction,
            "noise": "inserted",
            "photons": round(exposure.photons),
            "seed": task.seed,
            **_scan_facts(volume),
        }
        if as_it_is:
            low_dose, hu = (np.where(padding, np.float32(STORED_HU[0]), image) for image in (low_dose, hu))
        yield _Slice(number, repeat, (low_dose, hu), padding if as_it_is else None, facts)


def _real_pair(task: Task, number: int, read: Callable[[int], tuple[CTVolume, CTVolume]]) -> Iterator[_Slice]:
    scan = task.scan
    assert isinstance(scan, PairedScan)
    low_dose, normal_dose = read(number)
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


def _pair_reader(scan: PairedScan, numbers: tuple[int, ...]) -> Callable[[int], tuple[CTVolume, CTVolume]]:
    """What reads a pair: all at once if nothing is wrong, for a volume in one file is unpacked as a whole; else one by one."""
    try:
        low_dose, normal_dose = scan.read(numbers)
    except FinegrainError:
        return lambda number: scan.read((number,))
    place = {number: slice(k, k + 1) for k, number in enumerate(numbers)}
    return lambda number: (low_dose.part(place[number]), normal_dose.part(place[number]))


def _slice_reader(series: Series, numbers: tuple[int, ...]) -> Callable[[int], CTVolume]:
    """What reads a slice: a series of files file by file, a volume in one file at once."""
    first = numbers[0]
    if isinstance(series, ScanSeries) and series.kind == "dicom":
        return lambda number: series.read(slice(number, number + 1))
    try:
        volume = series.read(slice(first, numbers[-1] + 1))
    except FinegrainError:
        return lambda number: series.read(slice(number, number + 1))  # which says what is wrong
    return lambda number: volume.part(slice(number - first, number - first + 1))


def _kernel(name: str, volume: CTVolume) -> ReconKernel:
    return kernel_of_header(str(volume.acquisition.get("ConvolutionKernel", ""))) if name == HEADER_KERNEL else find_kernel(name)


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
        "manufacturer": vendor(str(volume.acquisition.get("Manufacturer", ""))),
    }


def vendor(manufacturer: str) -> str:
    """The vendor that a header names, and nothing else that a person may have typed there; empty if it is none of the known.

    >>> vendor("SIEMENS Healthineers, call 555")
    'Siemens'
    """
    return next((name for name in VENDORS if re.search(rf"\b{name}\b", manufacturer, re.IGNORECASE)), "")


@dataclass(frozen=True)
class _Draw:
    kernel: str
    dose_fraction: float

    @classmethod
    def make(cls, config: PairsConfig, generator: np.random.Generator, *, kernels: tuple[str, ...] = ()) -> _Draw:
        kernels = kernels or config.kernels
        kernel = kernels[generator.integers(len(kernels))]
        return cls(kernel, config.dose_fractions[generator.integers(len(config.dose_fractions))])
