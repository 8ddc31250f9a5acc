"""One row per pair: where it is, how it came to be, what quality control said, and on which side its patient stands.

`manifest.csv` holds the rows, `manifest.schema.json` says what each column means (JSON Schema of one row).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finegrain.config import Split
from finegrain.errors import DataError
from finegrain.files import write_whole
from finegrain.pairs.qc import PairQuality

MANIFEST, SCHEMA = "manifest.csv", "manifest.schema.json"
QUALITY_PREFIX = "qc_"
"""Columns of the quality control begin with it."""


class Pair(BaseModel):
    """One slice at two doses, and its noise-free truth where there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="Unique name.")
    shard: str = Field("", description="File below the store: int16 HU, shape (pair, image, y, x).")
    index: int = Field(0, ge=0, description="Which pair of the file; its images are low dose, normal dose[, truth].")
    sha256: str = Field("", description="Of the stored pixels of all its images.")
    normal_sha256: str = Field("", description="Of the normal-dose pixels: the same image under two names is found by it.")
    fingerprint: str = Field("", description="Of what the normal-dose image shows, however it was exported.")
    patient: str = Field(description="The unit of every split and every statistic; a pseudonym.")
    split: Split = Field("train", description="On which side of the split the patient stands.")
    source: int = Field(0, ge=0, description="Which source of the configuration it comes from.")
    collection: str = Field("", description="phantom, scan (simulated from one), or the layout of a collection of real pairs.")
    region: str = Field("", description="What the slice shows: head, neck, thorax, abdomen or pelvis.")
    region_confidence: float | None = Field(None, description="How sure the region is, 0 to 1; empty where it is known.")
    slice_index: int = Field(0, ge=0, description="Which slice of the scan.")
    z_mm: float | None = Field(None, description="Position along the slice normal in mm.")
    rows: int | None = Field(None, description="Height of the images in pixels.")
    columns: int | None = Field(None, description="Width of the images in pixels.")
    pixel_mm: float = Field(description="Pixel size in mm.")
    slice_mm: float | None = Field(None, description="Slice thickness in mm.")
    kernel: str = Field("", description="Reconstruction kernel.")
    kvp: float | None = Field(None, description="Tube voltage in kV.")
    manufacturer: str = Field("", description="Of the scanner, as in the header.")
    dose_fraction: float | None = Field(None, description="Dose of the low-dose image over that of the other; empty if unknown.")
    noise: Literal["inserted", "independent"] | None = Field(
        None, description="inserted: the low dose holds the noise of the normal dose and more. independent: two scans."
    )
    photons: float | None = Field(None, description="Photons per ray at normal dose, where the low dose was simulated.")
    seed: int | None = Field(None, description="Of the task that simulated it.")
    has_truth: bool = Field(False, description="Whether a noise-free image is stored.")
    verdict: Literal["keep", "borderline", "reject"] = Field(
        "keep", description="Of quality control; rejected pairs train nothing."
    )
    reasons: str = Field("", description="Why not keep, separated by semicolons.")
    quality: PairQuality | None = Field(None, description="What quality control measured.")

    @property
    def is_usable(self) -> bool:
        """Whether quality control lets it train and test."""
        return self.verdict != "reject"

    def images(self, folder: Path) -> NDArray[np.int16]:
        """The stored images, memory-mapped. Shape: (image, y, x), HU.

        Raises: DataError if they are gone or damaged.
        """
        try:
            return open_shard(Path(folder) / self.shard)[self.index]
        except (OSError, ValueError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) else "damaged"
            raise DataError(f"pair {self.key} of {folder} cannot be read ({reason}); build the pairs again") from None


def open_shard(path: Path) -> NDArray[np.int16]:
    """The images of a shard, memory-mapped. Shape: (pair, image, y, x), HU."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def balance_factors(pairs: Sequence[Pair]) -> dict[str, list[Hashable]]:
    """What training is balanced over: region, patient, kernel and dose of each pair."""
    return {
        "region": [pair.region for pair in pairs],
        "patient": [pair.patient for pair in pairs],
        "kernel": [pair.kernel for pair in pairs],
        "dose": [pair.dose_fraction for pair in pairs],
    }


# --- rows ↔ text ---------------------------------------------------------------------------------------------------------


def flat_row(pair: Pair) -> dict[str, Any]:
    """A pair as one row of plain values: the numbers of quality control with their prefix."""
    row: dict[str, Any] = {name: getattr(pair, name) for name in Pair.model_fields if name != "quality"}
    measured = asdict(pair.quality) if pair.quality else dict.fromkeys(PairQuality.__dataclass_fields__)
    return row | {QUALITY_PREFIX + name: value for name, value in measured.items()}


def _pair_of(row: Mapping[str, Any]) -> Pair:
    own = {name: value for name, value in row.items() if not name.startswith(QUALITY_PREFIX) and value != ""}
    measured = {name.removeprefix(QUALITY_PREFIX): value for name, value in row.items() if name.startswith(QUALITY_PREFIX)}
    if any(value not in ("", None) for value in measured.values()):
        own["quality"] = measured
    return Pair.model_validate(own)


def write_manifest(folder: Path, pairs: Iterable[Pair]) -> None:
    """Write manifest and schema, each replacing an old one in one step."""
    text = io.StringIO()
    columns = [name for name in Pair.model_fields if name != "quality"]
    columns += [QUALITY_PREFIX + name for name in PairQuality.__dataclass_fields__]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for pair in pairs:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in flat_row(pair).items()})
    write_whole(folder / SCHEMA, json.dumps(row_schema(), indent=1) + "\n")
    write_whole(folder / MANIFEST, text.getvalue())


def read_manifest(folder: Path) -> list[Pair]:
    """The pairs of a store, rejected ones too.

    Raises: DataError if there is no manifest, if it is damaged, or if one patient or image stands on two sides of the split.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no {MANIFEST}; build the pairs first: finegrain pairs")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            pairs = [_pair_of(row) for row in csv.DictReader(file, strict=True)]
    except (ValidationError, UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise DataError(f"{path} is damaged or of another version ({_first_line(error)}); build the pairs again") from None
    check_split(pairs)
    return pairs


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]


def row_schema() -> dict[str, Any]:
    """JSON Schema of one row of the manifest."""
    nested = Pair.model_json_schema()
    quality = nested.pop("$defs")["PairQuality"]
    properties = nested["properties"]
    properties.pop("quality")
    properties |= {QUALITY_PREFIX + name: value for name, value in quality["properties"].items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **nested}


# --- the split -----------------------------------------------------------------------------------------------------------


def check_split(pairs: Iterable[Pair]) -> None:
    """Raises: DataError if a patient, or one and the same image, is on two sides of the split; rejected pairs do not count."""
    sides: dict[tuple[str, str], str] = {}
    for pair in pairs:
        if not pair.is_usable:
            continue
        for name in ("patient", "sha256", "normal_sha256"):
            value = getattr(pair, name)
            if value and sides.setdefault((name, value), pair.split) != pair.split:
                raise DataError(f"{name} {value} is in the splits {sides[name, value]} and {pair.split}; a patient belongs to one")


def split_patients(
    patients: list[str],
    *,
    test_fraction: float,
    validation_fraction: float,
    generator: np.random.Generator,
    before: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """Draw which side each patient stands on; the fractions are rounded to whole patients, at least one where above zero.

    Patients that `before` names stay where they are, so that data that are added later never move one that was trained on;
    the new ones fill up what the fractions ask for.
    """
    kept = {patient: before[patient] for patient in patients if before and patient in before}
    n, new = len(patients), [patient for patient in patients if patient not in kept]
    wanted: dict[Split, int] = {
        "test": _whole(test_fraction * n, test_fraction > 0),
        "validation": _whole(validation_fraction * n, validation_fraction > 0),
    }
    if sum(wanted.values()) >= n and sum(wanted.values()) > 0:
        raise DataError(
            f"{n} patient{'s' * (n != 1)} cannot be split into test {wanted['test']} and validation {wanted['validation']} with "
            "one left to train on; add patients or lower the fractions (--test-fraction, --validation-fraction, down to 0)"
        )
    order = [new[i] for i in generator.permutation(len(new))]
    sides: list[Split] = []
    for side, n_wanted in wanted.items():
        sides += [side] * max(n_wanted - sum(held == side for held in kept.values()), 0)
    sides = sides[: len(order)]
    sides += ["train"] * (len(order) - len(sides))
    return kept | dict(zip(order, sides, strict=True))


def _whole(share: float, wanted: bool) -> int:
    return max(round(share), 1) if wanted else 0
