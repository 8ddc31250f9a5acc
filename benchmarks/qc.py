"""What the quality control of pairs finds of damage that is known, what it rejects of good pairs, and how long it takes.

Run: python benchmarks/qc.py tune|report [--pairs FOLDER] [--scan FOLDER:KERNEL ...]
FOLDER of --pairs is laid out as PATIENT/KERNEL/{full,quarter}/*.IMA, one slice a file, the same name on both sides, as the images
of the AAPM–Mayo Low Dose CT Grand Challenge can be (The Cancer Imaging Archive, doi 10.7937/9NPB-2637).
Each --scan is a normal-dose series, to which the missing noise of 50, 25 and 10 % dose is added with the kernel named.
Virtual patients of all regions are always there, with independent and with inserted noise, and at 192² pixels of 1.9 mm.
The limits were set on `tune`: every patient of --pairs but the last, virtual patients with even seeds. `report` is the others. A
scan belongs to whichever it is given to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import GeometryError
from finegrain.pairs.damage import Specimen, prove
from finegrain.scan.read import read_scan
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import Scanner, matching_exposure, scanner_of
from finegrain.simulate.dose import Exposure, scanner_settings
from finegrain.simulate.fbp import ReconKernel, find_kernel
from finegrain.simulate.phantom import VirtualPatient
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM

DOSES = (0.5, 0.25, 0.1)
SLICES = 14
"""Slices of each scan; each at every dose."""


def real_pairs(root: Path, *, report: bool) -> Iterator[Specimen]:
    """Pairs that a scanner's maker or a collection made; the neighbour is the next slice in the folder."""
    patients = sorted(path.name for path in root.iterdir())
    for folder in sorted(root.glob("*/*/full")):
        patient, kernel = folder.parents[1].name, folder.parent.name
        if (patient == patients[-1]) != report:
            continue
        names = sorted(path.name for path in folder.iterdir())
        scans = [(read_scan(folder.parent / "quarter" / name), read_scan(folder / name)) for name in names]
        for (low, normal), (neighbour, _) in pairwise([*scans, scans[0]]):
            yield Specimen(low.hu[0], normal.hu[0], neighbour.hu[0], normal.pixel_mm[0], patient, "real", kernel, 0.25, "inserted")


def simulated_pairs(path: Path, kernel_name: str) -> Iterator[Specimen]:
    """A normal-dose scan and what it lacks to be one of low dose, as a build makes it."""
    volume, kernel = read_scan(path), find_kernel(kernel_name)
    for index in np.linspace(0, len(volume) - 2, min(SLICES, len(volume) - 1)).round().astype(int):
        generator = np.random.default_rng([1, int(index)])
        try:
            normal, lows = _at_doses(volume, int(index), kernel, generator)
            _, neighbours = _at_doses(volume, int(index) + 1, kernel, generator)
        except GeometryError:
            continue  # too little soft tissue to tell the noise, and so the dose
        for dose, low, neighbour in zip(DOSES, lows, neighbours, strict=True):
            yield Specimen(low, normal, neighbour, volume.pixel_mm[0], path.name, path.name, kernel_name, dose, "inserted")


def _at_doses(
    volume: CTVolume, index: int, kernel: ReconKernel, generator: np.random.Generator
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    hu = np.where(volume.padding[index], np.float32(-1000), np.maximum(volume.hu[index], -1024))
    one = CTVolume.from_array(hu[None], pixel_mm=volume.pixel_mm[0], slice_mm=volume.thickness_mm)
    scanner = scanner_of(one, kernel=kernel, exposure=matching_exposure(one, kernel=kernel))
    return hu, [hu + scanner.missing_noise_hu(hu, dose_fraction=dose, generator=generator) for dose in DOSES]


def virtual_pairs(
    seeds: range, *, noise: Literal["independent", "inserted"], size: int = 512, pixel_mm: tuple[float, float] = (0.65, 0.9)
) -> Iterator[Specimen]:
    """Virtual patients of every region; the neighbour is 3 mm away."""
    for region in MIN_FIELD_MM:
        for seed in seeds:
            generator = np.random.default_rng([2, seed])
            pixel = float(generator.uniform(*pixel_mm))
            n = max(size, 2 * int(np.ceil(MIN_FIELD_MM[region] / pixel / 2 + 1)))
            photons = float(np.exp(generator.uniform(*np.log((4e5, 2e6)))))
            kernel = ("B30f", "B40f")[seed // 2 % 2]
            dose = DOSES[int(generator.integers(len(DOSES)))]
            exposure = Exposure(photons=photons, **scanner_settings(3.0))
            scanner = Scanner(size=n, pixel_mm=pixel, kernel=find_kernel(kernel), exposure=exposure)
            anatomy = VirtualPatient(seed=seed, region=region).slices(2, size=n, pixel_mm=pixel, slice_mm=3.0)
            here, beside = (
                scanner.scan_phantom(
                    hu, dose_fraction=dose, generator=generator, noise="shared" if noise == "inserted" else "independent"
                )
                for hu in anatomy.hu
            )
            source = f"virtual {region} {size} {noise}"
            yield Specimen(here.low_dose, here.normal_dose, beside.low_dose, pixel, f"virtual-{seed}", source, kernel, dose, noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=("tune", "report"))
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--scan", action="append", default=[], metavar="FOLDER:KERNEL")
    chosen = parser.parse_args()
    report = chosen.part == "report"
    pairs: list[Specimen] = []
    if chosen.pairs:
        pairs += real_pairs(chosen.pairs, report=report)
    for scan in chosen.scan:
        folder, _, kernel = scan.rpartition(":")
        pairs += simulated_pairs(Path(folder), kernel)
    first = 1 if report else 0
    pairs += virtual_pairs(range(first, 8, 2), noise="independent")
    pairs += virtual_pairs(range(first + 20, 24, 2), noise="inserted")
    pairs += virtual_pairs(range(first + 30, 34, 2), noise="independent", size=192, pixel_mm=(1.9, 1.9))
    pairs = [pair.stored() for pair in pairs]
    print(f"{chosen.part}: {len(pairs)} good pairs", file=sys.stderr)
    whole = [pair for pair in pairs if pair.low.shape[0] >= 512]
    start = time.perf_counter()
    for pair in whole:
        pair.measured()
    print(f"{1e3 * (time.perf_counter() - start) / len(whole):.0f} ms a pair of 512² pixels or more, fingerprint included\n")
    print(prove(pairs).as_text())
    doses = ("dose ÷ 2", "dose × 2", "dose ÷ 4")
    for dose in DOSES:
        print(f"\ntrue dose {100 * dose:g} %")
        print(prove((pair for pair in pairs if pair.dose_fraction == dose), kinds=doses).as_text())


if __name__ == "__main__":
    main()
