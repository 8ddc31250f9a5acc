"""Random training patches per second: from our store, and from the same slices as DICOM, HDF5 and zarr.

Run: python benchmarks/patches.py [--slices 200] [--seconds 3] [--json FILE]
One process, one thread; 64² patches of low and normal dose at random places, files in the page cache, opened once where the format
allows it. HDF5 (h5py) and zarr are left out, and said to be, if not installed. The last lines compare a whole batch of the
sampler, which also balances, finds body, flips and turns, with the noise of a new low dose simulated on the fly from stored line
integrals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from finegrain.hu import HURange
from finegrain.pairs.dataset import PatchSampler
from finegrain.pairs.manifest import Pair
from finegrain.pairs.store import Made, put_task
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.simulate.acquire import matching_exposure, scanner_of
from finegrain.simulate.fbp import KERNELS

PATCH = 64
SHARD = 16
Reader = Callable[[int, int, int], NDArray]
"""Slice, row and column of the patch → its pixels, shape (2, PATCH, PATCH)."""


def slices(n: int) -> Iterator[NDArray[np.int16]]:
    """Low and normal dose of the scan that ships, turned and mirrored to make enough of it. Shape: (2, 512, 512)."""
    volume = read_series(sample_folder())
    generator = np.random.default_rng(0)
    for k in range(n):
        normal = np.rot90(volume.hu[k % len(volume)], k // len(volume))
        low = normal + generator.normal(0, 30, normal.shape)
        yield np.clip(np.round([low, normal]), -1024, 3071).astype(np.int16)


def store(folder: Path, images: list[NDArray[np.int16]]) -> tuple[Reader, list[Pair]]:
    """Our store."""
    pairs: list[Pair] = []
    for start in range(0, len(images), SHARD):
        part = images[start : start + SHARD]
        rows = [
            Pair(key=f"{start + k}", patient=f"p{start}", pixel_mm=0.7, rows=512, columns=512, dose_fraction=0.25, noise="inserted")
            for k in range(len(part))
        ]
        pairs += put_task(folder, f"p{start}-0", part, Made(rows)).pairs
    mapped = [pair.images(folder) for pair in pairs]
    return lambda k, y, x: np.array(mapped[k][:, y : y + PATCH, x : x + PATCH]), pairs


def dicom(folder: Path, images: list[NDArray[np.int16]]) -> Reader:
    """One file a slice, uncompressed, as most people train."""
    template = pydicom.dcmread(next(iter(sorted(sample_folder().rglob("*.dcm")))))
    template.decompress() if template.file_meta.TransferSyntaxUID.is_compressed else None
    for k, pair in enumerate(images):
        for name, one in zip(("low", "normal"), pair, strict=True):
            template.BitsAllocated, template.BitsStored, template.HighBit, template.PixelRepresentation = 16, 16, 15, 1
            template.PixelData = one.tobytes()
            template.save_as(folder / f"{k}-{name}.dcm")

    def read(k: int, y: int, x: int) -> NDArray:
        both = [pydicom.dcmread(folder / f"{k}-{name}.dcm").pixel_array for name in ("low", "normal")]
        return np.stack([one[y : y + PATCH, x : x + PATCH] for one in both])

    return read


def hdf5(compression: str | None) -> Callable[[Path, list[NDArray[np.int16]]], Reader]:
    """One dataset of all slices."""

    def make(folder: Path, images: list[NDArray[np.int16]]) -> Reader:
        import h5py

        chunks = None if compression is None else (1, 2, 128, 128)
        with h5py.File(folder / "pairs.h5", "w") as file:
            file.create_dataset("pairs", data=np.stack(images), chunks=chunks, compression=compression)
        data = h5py.File(folder / "pairs.h5")["pairs"]
        return lambda k, y, x: data[k, :, y : y + PATCH, x : x + PATCH]

    return make


def zarr_chunks(folder: Path, images: list[NDArray[np.int16]]) -> Reader:
    """One array of all slices in chunks of 128², its default compression."""
    import zarr

    whole = np.stack(images)
    data = zarr.create_array(str(folder / "pairs.zarr"), shape=whole.shape, chunks=(1, 2, 128, 128), dtype=whole.dtype)
    data[:] = whole
    return lambda k, y, x: np.asarray(data[k, :, y : y + PATCH, x : x + PATCH])


def per_second(once: Callable[[], object], seconds: float) -> float:
    """How often a second something is done, after a warm-up of a quarter of the time."""
    for limit in (seconds / 4, seconds):
        n, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < limit:
            once()
            n += 1
    return n / (time.perf_counter() - begun)


def on_the_fly(seconds: float) -> float:
    """Slices a second that get new noise at a quarter of the dose, from line integrals that are there already."""
    volume = read_series(sample_folder()).part(slice(0, 1))
    exposure = matching_exposure(volume, kernel=KERNELS["B30f"])
    scanner = scanner_of(volume, kernel=KERNELS["B30f"], exposure=exposure)
    generator = np.random.default_rng(0)
    hu = np.maximum(volume.hu[0], -1000)
    return per_second(lambda: scanner.missing_noise_hu(hu, dose_fraction=0.25, generator=generator), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    images = list(slices(arguments.slices))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ours, pairs = store(Path(scratch) / "store", images)
        makers = {
            "HDF5, no compression": hdf5(None),
            "HDF5, gzip, 128² chunks": hdf5("gzip"),
            "zarr, 128² chunks": zarr_chunks,
            "DICOM, pydicom": dicom,
        }
        generator = np.random.default_rng(1)

        def random_patch(read: Reader) -> NDArray:
            k, y, x = generator.integers([len(images), 512 - PATCH, 512 - PATCH])
            return read(int(k), int(y), int(x))

        print(f"{len(images)} slices, patches of {PATCH}², low and normal dose\n{'patches/s':>12}{'ours/theirs':>14}")
        found["our store"] = per_second(lambda: random_patch(ours), arguments.seconds)
        print(f"{found['our store']:12,.0f}{'':14}  our store")
        for name, make in makers.items():
            folder = Path(scratch) / str(len(found))
            folder.mkdir()
            try:
                read = make(folder, images)
            except ModuleNotFoundError as error:
                print(f"{'':26}  {name}: {error.name} is not installed")
                continue
            assert np.array_equal(read(3, 100, 200), ours(3, 100, 200)), name
            found[name] = per_second(lambda read=read: random_patch(read), arguments.seconds)
            print(f"{found[name]:12,.0f}{found['our store'] / found[name]:14.1f}  {name}")
        sampler = PatchSampler(pairs, Path(scratch) / "store", patch=PATCH, batch=16, hu_range=HURange(), seed=0)
        steps = iter(range(10**9))
        found["sampler, whole batches"] = 16 * per_second(lambda: sampler.batch_at(next(steps)), arguments.seconds)
        print(f"{found['sampler, whole batches']:12,.0f}{'':14}  sampler: balanced, in the body, flipped, as tensors")
        mixing = PatchSampler(pairs, Path(scratch) / "store", patch=PATCH, batch=16, hu_range=HURange(), seed=0, doses=(0.25, 0.5))
        found["sampler, mixed doses"] = 16 * per_second(lambda: mixing.batch_at(next(steps)), arguments.seconds)
        print(f"{found['sampler, mixed doses']:12,.0f}{'':14}  sampler with doses mixed on the fly")
    found["slices simulated on the fly"] = on_the_fly(arguments.seconds)
    each = found["slices simulated on the fly"]
    print(
        f"{each:12.1f}{'':14}  slices a second with new noise on the fly: {each * 64:,.0f} patches/s if all 64 patches of a slice "
        "are used, which then come from one slice"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
