"""A CSV file with a line for each pair of scans."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from finegrain.config import Split
from finegrain.errors import DataError
from finegrain.pairs.collections.folders import pair_trees, series_at
from finegrain.pairs.collections.paired import Noise, PairedScan, kernel_of, pair_patient
from finegrain.pairs.collections.pseudonym import SAFE_LABEL, patient_label
from finegrain.scan.series import ScanSeries

COLUMNS = ("low_dose", "normal_dose", "patient", "dose_fraction", "noise", "split", "kernel")
"""low_dose and normal_dose are paths that start at the folder of the table; the others may be missing or empty."""


def table_pairs(table: Path, *, dose_fraction: float | None, noise: Noise | None) -> tuple[list[PairedScan], list[str]]:
    """The pairs of each line; what a line leaves empty is as given here.

    Raises: DataError that names the line and the column, never what stands there: it may be a patient's name.
    """
    pairs: list[PairedScan] = []
    notes: list[str] = []
    find = lru_cache(maxsize=None)(series_at)  # the lines of several kernels share a folder
    for number, row in _rows(table):
        fraction = _fraction(row["dose_fraction"], number) or dose_fraction
        row_noise = _one_of(row["noise"], get_args(Noise), "noise", number) or noise
        split = _one_of(row["split"], get_args(Split), "split", number)
        sides = {name: _series(table, row, name, number, find) for name in ("low_dose", "normal_dose")}
        lows, normals = sides["low_dose"][0], sides["normal_dose"][0]
        notes += [line for _, lines in sides.values() for line in lines]
        if row["patient"]:
            if not SAFE_LABEL.fullmatch(row["patient"]):
                raise DataError(
                    f"line {number} of the table: patient must be of letters, digits, '.', '_' and '-', a letter or digit first"
                )
            found, left_out = pair_patient(
                lows, normals, collection="csv", patient=row["patient"], dose_fraction=fraction, noise=row_noise, split=split
            )
        else:
            roots = (table.parent / row["low_dose"], table.parent / row["normal_dose"])
            found, left_out = pair_trees(
                lows, normals, roots=roots, collection="csv", dose_fraction=fraction, noise=row_noise, split=split
            )
        pairs += found
        notes += [f"line {number}: {line}" for line in left_out]
    return pairs, notes


def table_normals(table: Path) -> tuple[list[tuple[str, ScanSeries]], list[str]]:
    """The normal-dose series of each line, once each, with the label of its patient."""
    scans: dict[str, tuple[str, ScanSeries]] = {}
    notes: list[str] = []
    find = lru_cache(maxsize=None)(series_at)
    for number, row in _rows(table):
        found, lines = _series(table, row, "normal_dose", number, find)
        notes += lines
        for series in found:
            scans[series.fingerprint] = (row["patient"] or patient_label(series.patient_id, series.fingerprint), series)
    return list(scans.values()), notes


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines with anything in them, each with its number and every column."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip().lower() for name in next(reader, [])]
            _check_names(names)
            for row in reader:
                if len(row) > len(names):
                    raise DataError(f"line {reader.line_num} of the table has {len(row)} fields, expected {len(names)}")
                values = dict(zip(names, (value.strip() for value in row), strict=False))
                if any(values.values()):
                    yield reader.line_num, {name: values.get(name, "") for name in COLUMNS}
    except OSError as error:
        raise DataError(f"the table cannot be read: {error.strerror or 'read error'}; check it") from None
    except (UnicodeDecodeError, csv.Error):
        raise DataError("the table is no CSV in UTF-8; save it again as such") from None


def _check_names(names: list[str]) -> None:
    for number, name in enumerate(names, start=1):
        if name not in COLUMNS:
            nearest = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.0)[0]
            raise DataError(
                f"the name of column {number} of the table is unknown, the nearest is {nearest!r}; known are {', '.join(COLUMNS)}"
            )
    if len(set(names)) < len(names):
        raise DataError("the table has a column twice; take one away")
    if not {"low_dose", "normal_dose"} <= set(names):
        raise DataError(f"the table needs the columns low_dose and normal_dose; known are {', '.join(COLUMNS)}")


def _series(table: Path, row: dict[str, str], name: str, number: int, find: Any) -> tuple[list[ScanSeries], list[str]]:
    if not row[name]:
        raise DataError(f"line {number} of the table: {name} is empty, expected a path that starts at the folder of the table")
    try:
        found, lines = find(table.parent / row[name], name)
    except DataError as error:
        raise DataError(f"line {number} of the table: {error}") from None
    if row["kernel"]:
        found = [one for one in found if kernel_of(one) == row["kernel"]]
        if not found:
            raise DataError(f"line {number} of the table: no series of {name} has its kernel; see ConvolutionKernel in the headers")
    return found, [f"line {number}: {line}" for line in lines]


def _fraction(text: str, number: int) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = 0.0
    if value is not None and not 0 < value < 1:
        raise DataError(f"line {number} of the table: dose_fraction must be a number between 0 and 1, like 0.25")
    return value


def _one_of(text: str, known: tuple[str, ...], name: str, number: int) -> Any:
    if text and text not in known:
        raise DataError(f"line {number} of the table: {name} must be {', '.join(known)} or empty")
    return text or None
