"""A build of many pairs: pairs per second, and memory as the store grows.

Run: python benchmarks/pairs_build.py WORK [--pairs 10000] [--workers 2] [--json FILE]
WORK gets synthetic copies of the scan that ships, as a collection in the Mayo layout: patients of 100 slices, each patient in
another place, each slice with noise of its own, at full and at quarter dose (a megabyte a pair, and another in the store). They are
written first, which is not timed, and kept for the next run. Three patients, 300 pairs, are the fewest that can be split. The peer
is the script that everybody writes: read both DICOM files with pydicom, rescale, save int16; without quality control, regions,
hashes or resume; one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian

from finegrain.config import CollectionSource, PairsConfig
from finegrain.pairs.build import build_pairs
from finegrain.pairs.manifest import read_manifest
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import matching_exposure, photons_along_z, scanner_of
from finegrain.simulate.fbp import KERNELS

SLICES = 100
"""Pairs of a patient."""
PEER_PAIRS = 300


def make_collection(folder: Path, n_pairs: int) -> None:
    """Write the patients that are not there yet."""
    volume = read_series(sample_folder())
    template = pydicom.dcmread(volume.source.files[0])
    if template.file_meta.TransferSyntaxUID.is_compressed:
        template.decompress()
    template.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    noises = noise_maps(volume)
    for patient in range(-(-n_pairs // SLICES)):
        name = f"S{patient:04d}"
        if (folder / f"{name}.whole").exists():
            continue
        place = (9 * (patient % 10) - 40, 9 * (patient // 10 % 10) - 40)
        for number in range(min(SLICES, n_pairs - patient * SLICES)):
            generator = np.random.default_rng([patient, number])
            k = number * len(volume) // SLICES
            normal = volume.hu[k] + np.where(volume.hu[k] > -900, generator.normal(0, 3, volume.hu[k].shape), 0)
            low = np.roll(normal + noises[k][generator.integers(len(noises[k]))], place, axis=(0, 1))
            normal = np.roll(normal, place, axis=(0, 1))
            for dose, hu in (("full", normal), ("quarter", low)):
                write(template, folder / f"{dose}_3mm" / name / f"{dose}_3mm" / f"{number:04d}.IMA", hu, patient, number, dose)
        (folder / f"{name}.whole").touch()


def noise_maps(volume: CTVolume) -> list[list[NDArray[np.float32]]]:
    """Missing noise at a quarter of the dose, a few times for each slice."""
    exposure = matching_exposure(volume, kernel=KERNELS["B40f"])
    scanner, photons = scanner_of(volume, kernel=KERNELS["B40f"], exposure=exposure), photons_along_z(volume, exposure)
    return [
        [
            scanner.missing_noise_hu(
                np.maximum(hu, -1000), dose_fraction=0.25, generator=np.random.default_rng([k, seed]), photons=photons[k]
            )
            for seed in range(4)
        ]
        for k, hu in enumerate(volume.hu)
    ]


def write(template: pydicom.Dataset, path: Path, hu: NDArray, patient: int, number: int, dose: str) -> None:
    """One slice as DICOM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    series = f"1.2.826.0.1.{patient}.{1 if dose == 'full' else 2}"
    template.PatientID, template.PatientName = f"copy {patient}", f"copy {patient}"
    template.StudyInstanceUID, template.SeriesInstanceUID, template.SOPInstanceUID = (
        f"1.2.826.0.1.{patient}",
        series,
        f"{series}.{number}",
    )
    template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
    template.InstanceNumber, template.ImagePositionPatient = number, [0, 0, 3 * number]
    stored = (hu - float(template.RescaleIntercept)) / float(template.RescaleSlope)
    low, high = (-32768, 32767) if template.PixelRepresentation else (0, 4095)
    template.PixelData = np.clip(np.round(stored), low, high).astype("<i2" if template.PixelRepresentation else "<u2").tobytes()
    template.save_as(path)


class Memory:
    """The resident memory of this process and its children, sampled while something runs."""

    def __init__(self) -> None:
        self.now, self.peak, self._done = 0.0, 0.0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            self.now = sum(resident_mb(pid) for pid in (os.getpid(), *children(os.getpid())))
            self.peak = max(self.peak, self.now)

    def stop(self) -> None:
        self._done.set()


def resident_mb(pid: int) -> float:
    """Private memory of a process in MB: pages shared with others, such as libraries and mapped files, not counted."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []


def peer(folder: Path, out: Path) -> float:
    """Pairs per second of a plain loop."""
    out.mkdir(parents=True)
    files = sorted((folder / "full_3mm").rglob("*.IMA"))[:PEER_PAIRS]
    begun = time.perf_counter()
    for k, full in enumerate(files):
        images = []
        for path in (Path(str(full).replace("full_3mm", "quarter_3mm")), full):
            image = pydicom.dcmread(path)
            images.append(image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept))
        np.save(out / f"{k}.npy", np.stack(images).astype(np.int16))
    return len(files) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    collection, store = arguments.work / "collection", arguments.work / "store"
    make_collection(collection, arguments.pairs)
    for leftover in (store, arguments.work / "peer"):
        shutil.rmtree(leftover, ignore_errors=True)
    source = CollectionSource(path=str(collection.resolve()), layout="mayo")
    memory, begun, course = Memory(), time.perf_counter(), []

    def progress(done: int, total: int) -> None:
        if not course or done >= total * (len(course) / 10) or done == total:
            seconds = time.perf_counter() - begun
            course.append({"share": done / total, "seconds": seconds, "memory_mb": memory.now})
            print(f"{done / total:5.0%}  {seconds:7.1f} s  {memory.now:6.0f} MB", flush=True)

    config = PairsConfig(sources=(source,), test_fraction=0.1, validation_fraction=0.1)
    build_pairs(config, store, data_root=Path(), workers=arguments.workers, progress=progress)
    seconds = time.perf_counter() - begun
    memory.stop()
    pairs = read_manifest(store)
    found = {
        "pairs": len(pairs),
        "usable": sum(pair.is_usable for pair in pairs),
        "pairs_per_second": len(pairs) / seconds,
        "peak_mb": memory.peak,
        "peer_pairs_per_second": peer(collection, arguments.work / "peer"),
        "course": course,
    }
    print(
        f"{found['pairs']:,} pairs in {seconds:.0f} s with {arguments.workers} workers: {found['pairs_per_second']:.1f} pairs/s, "
        f"largest private memory of all processes {found['peak_mb']:.0f} MB; {found['usable']:,} usable\n"
        f"plain loop, one process, no checks: {found['peer_pairs_per_second']:.1f} pairs/s; ours/theirs "
        f"{found['pairs_per_second'] / found['peer_pairs_per_second']:.2f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
