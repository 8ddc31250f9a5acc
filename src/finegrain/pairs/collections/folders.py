"""Two folders or files, one of each dose: series find their partners by patient and geometry, not by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finegrain.config import Split
from finegrain.errors import DataError
from finegrain.pairs.collections.found import find_usable_series
from finegrain.pairs.collections.paired import Noise, PairedScan, pair_patient
from finegrain.pairs.collections.pseudonym import is_placeholder, pseudonym
from finegrain.scan.series import ScanSeries


def folder_pairs(
    low_dose: Path, normal_dose: Path, *, dose_fraction: float | None, noise: Noise | None
) -> tuple[list[PairedScan], list[str]]:
    """The pairs of two trees of DICOM series or volumes; see `pair_trees`.

    Raises: DataError if either holds no series.
    """
    lows, notes = series_at(low_dose, "low_dose")
    normals, more = series_at(normal_dose, "normal_dose")
    pairs, left_out = pair_trees(
        lows, normals, roots=(low_dose, normal_dose), collection="folders", dose_fraction=dose_fraction, noise=noise
    )
    return pairs, notes + more + left_out


def series_at(path: Path, name: str) -> tuple[list[ScanSeries], list[str]]:
    """The series in a folder or file.

    Raises: DataError, with `name` for the path, which may name a patient, if there are none.
    """
    if not path.exists():
        raise DataError(f"{name}: expected a folder or file with CT images, found nothing at its path; check it")
    found, lines = find_usable_series(path)
    if not found:
        raise DataError(f"{name}: expected CT series, found none{f' ({lines[0]})' if lines else ''}; check its path")
    return found, [f"{name}: {line}" for line in lines]


def pair_trees(
    lows: Sequence[ScanSeries],
    normals: Sequence[ScanSeries],
    *,
    roots: tuple[Path, Path],
    collection: str,
    dose_fraction: float | None,
    noise: Noise | None,
    split: Split | None = None,
) -> tuple[list[PairedScan], list[str]]:
    """The pairs among the series of two trees.

    A single series on either side is a pair if its geometry fits, whatever patient the headers name. Else those of one patient are
    compared. Where the header tells none, because it was taken out or the format has no place for it, those of one path within
    their trees are; and what is then left, with each other.

    Args:
        roots: of the tree of the low and of the normal dose.
    """
    groups: dict[tuple[str, str], tuple[list[ScanSeries], list[ScanSeries]]] = {}
    only = len(lows) == len(normals) == 1
    known = [one.patient_id for one in (*normals, *lows) if not is_placeholder(one.patient_id)]
    for side, (series, root) in enumerate(zip((lows, normals), roots, strict=True)):
        for one in series:
            if only:
                key = (pseudonym(known[0]) if known else "", "")
            elif is_placeholder(one.patient_id):
                key = ("", _place(one, root))
            else:
                key = (pseudonym(one.patient_id), "")
            groups.setdefault(key, ([], []))[side].append(one)
    lonely = [key for key, (low, normal) in groups.items() if not key[0] and not (low and normal)]
    if lonely:
        rest = [groups.pop(key) for key in lonely]
        groups["", ""] = ([one for low, _ in rest for one in low], [one for _, normal in rest for one in normal])
    pairs: list[PairedScan] = []
    left_out: list[str] = []
    for (patient, _), (low, normal) in sorted(groups.items()):
        found, lines = pair_patient(
            low, normal, collection=collection, patient=patient, dose_fraction=dose_fraction, noise=noise, split=split
        )
        pairs += found
        left_out += lines
    unknown = sum(not patient for patient, _ in groups)
    if unknown > 1 and pairs:
        left_out.append(
            "several scans tell no patient and count as one each; if some are of one patient, give a CSV with the column patient"
        )
    return pairs, left_out


def _place(series: ScanSeries, root: Path) -> str:
    """Folder of a DICOM series, or file without its suffixes, within its tree."""
    path = series.files[0]
    inner = path.relative_to(root) if root.is_dir() else Path(path.name)
    return str(inner.parent if series.kind == "dicom" else inner.parent / inner.name.split(".")[0])
