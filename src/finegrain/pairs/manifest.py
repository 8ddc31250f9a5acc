"""One line per pair: where it is, how it was made, and on which side of the split its patient stands."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finegrain.config import Split
from finegrain.errors import DataError
from finegrain.files import write_whole

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Pair:
    """One slice at two doses, and its noise-free truth where there is one.

    Attributes:
        key: unique name; the file is `<key>.npy`, int16 HU, shape (image, y, x), images low dose, normal dose[, truth].
        patient: the unit of every split and every statistic.
        split: train, validation or test.
        source: which source of the configuration it comes from.
        region: what the source says it shows.
        slice_index: which slice of the source.
        pixel_mm: pixel size.
        kernel, dose_fraction, photons, seed: how the low dose was simulated.
        has_truth: whether a noise-free image is stored.
        sha256: of the file's pixels.
    """

    key: str
    patient: str
    split: Split
    source: int
    region: str
    slice_index: int
    pixel_mm: float
    kernel: str
    dose_fraction: float
    photons: float
    seed: int
    has_truth: bool
    sha256: str

    def images(self, folder: Path) -> NDArray[np.int16]:
        """The stored images, memory-mapped. Shape: (image, y, x), HU."""
        try:
            return np.load(folder / f"{self.key}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"pair {self.key} of {folder} cannot be read ({error}); build the pairs again") from None


def store_images(folder: Path, key: str, images: NDArray[np.int16]) -> str:
    """Write the images of a pair whole or not at all; gives their sha256."""
    temporary = folder / f".{key}.tmp"
    with temporary.open("wb") as file:
        np.save(file, images, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / f"{key}.npy")
    return hashlib.sha256(images.tobytes()).hexdigest()


def write_manifest(folder: Path, pairs: Iterable[Pair]) -> None:
    """Write the manifest, replacing an old one in one step."""
    write_whole(folder / MANIFEST, "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))


def read_manifest(folder: Path) -> list[Pair]:
    """The pairs of a folder.

    Raises: DataError if there is no manifest, or if one patient stands on two sides of the split.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no {MANIFEST}; build the pairs first")
    pairs = [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    check_split(pairs)
    return pairs


def check_split(pairs: Iterable[Pair]) -> None:
    """Raises: DataError if a patient, or one and the same image, is on two sides of the split."""
    for name in ("patient", "sha256"):
        sides: dict[str, str] = {}
        for pair in pairs:
            value = getattr(pair, name)
            if sides.setdefault(value, pair.split) != pair.split:
                raise DataError(f"{name} {value} is in the splits {sides[value]} and {pair.split}; a patient belongs to one")


def split_patients(
    patients: list[str], *, test_fraction: float, validation_fraction: float, generator: np.random.Generator
) -> dict[str, Split]:
    """Draw which side each patient stands on; the fractions are rounded to whole patients, at least one where above zero."""
    n = len(patients)
    n_test = _whole(test_fraction * n, test_fraction > 0)
    n_validation = _whole(validation_fraction * n, validation_fraction > 0)
    if n_test + n_validation >= n and n_test + n_validation > 0:
        raise DataError(
            f"{n} patients cannot be split into test {n_test} and validation {n_validation} with one left to train on; "
            "add patients or lower the fractions"
        )
    order = [patients[i] for i in generator.permutation(n)]
    sides: list[Split] = ["test"] * n_test + ["validation"] * n_validation + ["train"] * (n - n_test - n_validation)  # type: ignore[assignment]
    return dict(zip(order, sides, strict=True))


def _whole(share: float, wanted: bool) -> int:
    return max(round(share), 1) if wanted else 0
