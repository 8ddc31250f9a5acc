"""What the pairs of a version must come out as: a hash of their pixels, and signatures that rounding leaves alone.

Two machines may round differently, since the last bits of a Fourier transform depend on the processor. So beside the hash, which
proves that all pixels are the same, stands a signature of each image: its product with a fixed pattern of +1 and −1 over the square
root of the number of pixels. It changes by about the RMS difference of two images, tens of HU for other noise, and hardly for a few
pixels that were rounded the other way.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from finegrain.config import Split
from finegrain.errors import DataError
from finegrain.files import write_whole
from finegrain.pairs.manifest import Pair

PATTERN_SEED = 1
"""Of the pattern of a signature. Never to be changed."""
SIGNATURE_TOLERANCE_HU = 0.5
"""Signatures that differ by less are of images that differ by rounding: one pixel in a hundred rounded otherwise gives 0.1."""


class FrozenPair(BaseModel):
    """One pair of a frozen version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    set: str = Field(description="Of the benchmark's sets.")
    patient: str
    slice_index: int
    repeat: int = Field(description="How many draws of the same slice came before.")
    split: Split
    collection: str = Field(description="phantom, or scan.")
    region: str
    kernel: str
    dose_fraction: float
    pixel_mm: float
    verdict: str = Field(description="Of quality control; rejected pairs are used for nothing.")
    sha256: str = Field(description="Of the pixels of all its images.")
    low_hu: float = Field(description="Signature of the low dose.")
    normal_hu: float = Field(description="Signature of the normal dose.")
    truth_hu: float | None = Field(description="Signature of the noise-free truth, where there is one.")

    @property
    def place(self) -> tuple[str, str, int, int]:
        """What names it in any build."""
        return self.set, self.patient, self.slice_index, self.repeat

    def differs_hu(self, other: FrozenPair) -> float:
        """The largest difference of a signature; infinite if anything else differs."""
        if self.model_dump(exclude=MEASURED) != other.model_dump(exclude=MEASURED) or (self.truth_hu is None) != (
            other.truth_hu is None
        ):
            return float("inf")
        truths = (self.truth_hu or 0.0) - (other.truth_hu or 0.0)
        return max(abs(self.low_hu - other.low_hu), abs(self.normal_hu - other.normal_hu), abs(truths))


MEASURED = {"sha256", "low_hu", "normal_hu", "truth_hu"}


@dataclass(frozen=True)
class Comparison:
    """How a build compares with what is frozen, in numbers of pairs; `other` and `missing` name each."""

    identical: int
    rounded: int
    other: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the build is the frozen version."""
        return not self.other and not self.missing


def signature_hu(image: NDArray[Any]) -> float:
    """One number in HU that tells an image from every other one, to a hundredth. Shape: (y, x)."""
    pattern = np.random.Generator(np.random.PCG64(PATTERN_SEED)).integers(0, 2, size=image.size, dtype=np.int8)
    signed = np.where(pattern.reshape(image.shape) > 0, image, -image.astype(np.int64))
    return round(float(signed.sum() / np.sqrt(image.size)), 2)


def freeze(name: str, pairs: Iterable[Pair], store: Path) -> list[FrozenPair]:
    """What there is of each pair of a store, the rejected ones too, for the set that is called `name`."""
    frozen = []
    for pair in pairs:
        low, normal, *truth = (signature_hu(image) for image in pair.images(store))
        facts = pair.model_dump(include=set(FrozenPair.model_fields) & set(Pair.model_fields))
        repeat = int(pair.key.rsplit("-", 1)[1])
        signatures = {"low_hu": low, "normal_hu": normal, "truth_hu": truth[0] if truth else None}
        frozen.append(FrozenPair(set=name, repeat=repeat, **facts, **signatures))
    return frozen


def compare(built: Sequence[FrozenPair], frozen: Sequence[FrozenPair]) -> Comparison:
    """How what was built compares with what is frozen; pairs of the same set, patient, slice and repeat belong together."""
    expected = {pair.place: pair for pair in frozen}
    identical, rounded, other = 0, 0, []
    for pair in built:
        known = expected.pop(pair.place, None)
        difference = pair.differs_hu(known) if known else float("inf")
        if known and pair.sha256 == known.sha256 and difference < SIGNATURE_TOLERANCE_HU:
            identical += 1
        elif difference < SIGNATURE_TOLERANCE_HU:
            rounded += 1
        else:
            other.append(_named(pair))
    return Comparison(identical, rounded, tuple(other), tuple(map(_named, expected.values())))


def _named(pair: FrozenPair) -> str:
    return f"{pair.set}, {pair.patient}, slice {pair.slice_index}"


def write_frozen(path: Path, pairs: Sequence[FrozenPair]) -> None:
    """Write a frozen list as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(FrozenPair.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair.model_dump() for pair in sorted(pairs, key=lambda pair: pair.place))
    write_whole(path, text.getvalue())


def read_frozen(path: Path) -> list[FrozenPair]:
    """The pairs of a frozen list.

    Raises: DataError if it is no such list.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [FrozenPair.model_validate(_without_empty(row)) for row in csv.DictReader(file)]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise DataError(f"{path.name} is no frozen list of pairs: {reason}") from None


def _without_empty(row: Mapping[str, str]) -> dict[str, str | None]:
    return {name: value or None for name, value in row.items()}
