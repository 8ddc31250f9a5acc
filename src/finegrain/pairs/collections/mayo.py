"""The Mayo image data: the 2016 Low Dose CT Grand Challenge as it was handed out, and the same collection grown, on TCIA.

The challenge says the dose by folders (full_3mm, quarter_1mm_sharp …) and the patient by a folder or the file name; its PatientID
is "Anonymous" for all. TCIA says the dose by SeriesDescription and by folders that carry it, the patient by PatientID. In
both the low dose is made by noise insertion into the raw data, so it holds the noise of the normal dose and more.

Source: McCollough et al. 2017, Med Phys 44:e339, doi 10.1002/mp.12345 (a quarter of the dose); Moen et al. 2021, Med Phys 48:902,
doi 10.1002/mp.14594.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from finegrain.pairs.collections.found import find_usable_series
from finegrain.pairs.collections.paired import Noise, PairedScan, pair_all
from finegrain.pairs.collections.pseudonym import PUBLIC_ID, is_placeholder, pseudonym
from finegrain.scan.series import ScanSeries, find_series, kind_of

Dose = Literal["low", "normal"]

QUARTER = 0.25
TCIA_DOSE_FRACTIONS = {"C": 0.10, "L": 0.25, "N": 0.25}
"""By the letter of the patient: chest at 10 % of the dose, liver and head (neuro) at 25 %."""

Sides = dict[Dose, list[tuple[str, ScanSeries]]]
"""The series of each dose, each with its patient's label; "" where that is unknown."""

_CHALLENGE_FOLDERS: dict[str, Dose] = {"full": "normal", "fd": "normal", "quarter": "low", "qd": "low"}
_TCIA_SERIES = re.compile(r"(full|low)[\s_-]*dose[\s_-]*(image|projection)s?", re.IGNORECASE)
_PATIENT_IN_NAME = re.compile(rf"(?<![A-Za-z0-9])({PUBLIC_ID.pattern})(?![0-9])")


def challenge_pairs(folder: Path, *, dose_fraction: float | None, noise: Noise | None) -> tuple[list[PairedScan], list[str]]:
    """The pairs of a tree with folders full… and quarter…, at any depth."""
    sides, notes = challenge_sides(folder)
    pairs, left_out = pair_all(
        sides["low"],
        sides["normal"],
        collection="mayo",
        dose_fraction=lambda _: dose_fraction or QUARTER,
        noise=noise or "inserted",
    )
    return pairs, notes + left_out


def tcia_pairs(folder: Path, *, dose_fraction: float | None, noise: Noise | None) -> tuple[list[PairedScan], list[str]]:
    """The pairs of a tree of LDCT-and-Projection-data; projections are left out."""
    sides, notes = tcia_sides(folder)

    def fraction(patient: str) -> float | None:
        return dose_fraction or (TCIA_DOSE_FRACTIONS[patient[0]] if PUBLIC_ID.fullmatch(patient) else None)

    pairs, left_out = pair_all(
        sides["low"], sides["normal"], collection="tcia-ldct", dose_fraction=fraction, noise=noise or "inserted"
    )
    return pairs, notes + left_out


def challenge_sides(folder: Path) -> tuple[Sides, list[str]]:
    """The series below folders full… and quarter…, each tree read for itself, so that its name alone decides on the dose."""
    sides: Sides = {"low": [], "normal": []}
    notes: list[str] = []
    for path in _folders(folder, stop=lambda name: _challenge_dose(name) is not None):
        dose = _challenge_dose(path.name)
        if dose is None:
            continue
        found, lines = find_usable_series(path)
        notes += lines
        sides[dose] += [(_patient_by_name(series, folder), series) for series in found]
    return sides, notes


def tcia_sides(folder: Path) -> tuple[Sides, list[str]]:
    """The series called full or low dose images, by their SeriesDescription or, where that was removed, by their folder."""
    named = [path for path in _folders(folder, stop=_is_tcia_name) if _is_tcia_name(path.name)]
    images = [path for path in named if _tcia_match(path.name, "image")]
    # Folders that carry names spare reading the headers of the projections, some ten thousand files for each patient.
    sides: Sides = {"low": [], "normal": []}
    notes: list[str] = []
    if len(named) > len(images):
        notes.append(f"{len(named) - len(images)} folders of projection data left out")
    n_others = 0
    for path in images if named else [folder]:
        found, lines = find_usable_series(path)
        notes += lines
        for series in found:
            texts = (series.description, *reversed(series.files[0].relative_to(folder).parts[:-1]), path.name)
            match = next((match for text in texts if (match := _TCIA_SERIES.search(text))), None)
            if match is None or match[2].lower() != "image":
                n_others += 1
                continue
            dose: Dose = "low" if match[1].lower() == "low" else "normal"
            sides[dose].append((_patient_by_header(series, folder), series))
    if n_others:
        notes.append(f"{n_others} series left out that are not called full or low dose images")
    return sides, notes


def is_challenge(folder: Path) -> bool:
    """Whether there are folders full… and quarter…."""
    found = {_challenge_dose(path.name) for path in _folders(folder, stop=lambda name: _challenge_dose(name) is not None)}
    return {"low", "normal"} <= found


def is_tcia(folder: Path) -> bool:
    """Whether folders, or else the SeriesDescription of the first file in each, say full and low dose images."""
    by_folder = (path.name for path in _folders(folder, stop=_is_tcia_name))
    return any({"full", "low"} <= _doses_named(names) for names in (by_folder, _descriptions(folder)))


def _doses_named(names: Iterable[str]) -> set[str]:
    return {match[1].lower() for name in names if (match := _tcia_match(name, "image"))}


def _descriptions(folder: Path) -> Iterator[str]:
    """SeriesDescription of the first DICOM file in each folder."""
    for parent, names, files in os.walk(folder):
        names.sort()
        first = next((Path(parent, name) for name in sorted(files) if kind_of(Path(name)) == "dicom"), None)
        if first is not None:
            yield from (series.description for series in find_series(first)[0])


def _challenge_dose(name: str) -> Dose | None:
    return _CHALLENGE_FOLDERS.get(re.split(r"[\s_-]", name.lower(), maxsplit=1)[0])


def _is_tcia_name(name: str) -> bool:
    return _TCIA_SERIES.search(name) is not None


def _tcia_match(name: str, kind: str) -> re.Match[str] | None:
    match = _TCIA_SERIES.search(name)
    return match if match and match[2].lower() == kind else None


def _folders(folder: Path, *, stop: Callable[[str], bool]) -> Iterator[Path]:
    """All folders below one, in order of name; none below those whose name says stop."""
    for parent, names, _ in os.walk(folder):
        names.sort()
        yield from (Path(parent, name) for name in names)
        names[:] = [name for name in names if not stop(name)]


def _patient_by_name(series: ScanSeries, folder: Path) -> str:
    """Of the innermost folder that is called like a patient, the file, or the header."""
    inner = series.files[0].relative_to(folder).parts
    for name in (*reversed(inner[:-1]), inner[-1], folder.resolve().name):
        match = _PATIENT_IN_NAME.search(name)
        if match:
            return match[1]
    return "" if is_placeholder(series.patient_id) else pseudonym(series.patient_id)


def _patient_by_header(series: ScanSeries, folder: Path) -> str:
    return _patient_by_name(series, folder) if is_placeholder(series.patient_id) else pseudonym(series.patient_id)
