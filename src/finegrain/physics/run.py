"""The stage's main path: phantom scans → checks → verdicts → JSON, CSV, page."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from finegrain import __version__
from finegrain.errors import ConfigError, DataError
from finegrain.files import json_safe, write_whole
from finegrain.physics.checks import QUANTITIES, Measured, all_keys, measure, value_text
from finegrain.physics.compare import (
    FORMAT,
    Verdict,
    allowed_text,
    change_verdicts,
    incomparable,
    limit_verdicts,
    matching_baseline,
    read_baseline,
    refuse_other_conditions,
    summary_of,
)
from finegrain.physics.geometry import Phantom, find_body
from finegrain.physics.page import write_physics_page
from finegrain.physics.places import find_phantom, find_places
from finegrain.physics.scans import PhantomScan, read_phantom
from finegrain.physics.settings import PhysicsSettings
from finegrain.provenance import write_provenance
from finegrain.scan.privacy import shown

RESULTS, TABLE, PAGE = "physics.json", "physics.csv", "physics.html"

LONGEST_NAME = 24
"""Characters of a scan's name that fit at the head of a column."""

MOVED_MM = 0.5
"""Distance between the phantom's centres before and after beyond which it has moved; ours: a denoiser moves no edge by half a
pixel."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PhysicsOutcome:
    """What the command line prints.

    Attributes:
        table: rows, the first the heading. failed: how many verdicts are "fail".
        summary: one sentence. notes: what a reader must know.
    """

    title: str
    table: list[list[str]]
    notes: tuple[str, ...]
    summary: str
    failed: int
    page: Path


def named_folders(after: Sequence[str]) -> dict[str, Path]:
    """Name → folder of texts such as "soft=scans/soft"; one without a name is called "after".

    Raises: ConfigError for two of one name.
    """
    folders: dict[str, Path] = {}
    for text in after:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).exists():
            name, folder = "after", text
        if not name.strip() or len(name) > LONGEST_NAME:
            raise ConfigError(f"expected NAME=DIR with a name of at most {LONGEST_NAME} characters, got {shown(text)}")
        if name in folders:
            raise ConfigError(f"two scans are called {shown(name)}; give each its own name: --after NAME=DIR")
        folders[name] = Path(folder)
    return folders


def run_physics(
    before: Path,
    after: Mapping[str, Path],
    out: Path,
    *,
    settings: PhysicsSettings,
    baseline: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda what: None,
) -> PhysicsOutcome:
    """Measure a phantom scan, and the same after one or more methods, and write JSON, CSV and page to `out`.

    Args:
        before: folder or file of the scan, repeats of it side by side.
        after: name → folder of the same scan after a method; may be empty.
        baseline: physics.json of an acceptance run.
        seed: of the bootstraps.

    Raises: FinegrainError, in one line.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError("--out is a file, expected a folder; give another")
    if baseline is not None and Path(baseline).resolve() == (out / RESULTS).resolve():
        raise ConfigError("the baseline would be overwritten by the results of this run; give another folder to --out")
    earlier = read_baseline(baseline) if baseline is not None else []
    first_name = "before" if after else "phantom"
    if first_name in after:
        raise ConfigError(f"the scan before is called {first_name!r}; give the one after another name")
    progress("reading")
    scans = [read_phantom(path, name) for name, path in ((first_name, before), *after.items())]
    progress("looking for the phantom")
    phantom = find_phantom(scans[0], settings.phantom)
    for scan in scans[1:]:
        refuse_other_grid(scans[0], scan)
        if settings.phantom.body is None:  # else its outline cannot be found, after no more than before
            refuse_moved_phantom(scans[0], scan, phantom)
    places = find_places(phantom, pixel_mm=scans[0].pixel_mm)
    progress("measuring")
    measured = measure(scans, phantom, places=places, tasks=settings.tasks, seed=seed)
    rods = phantom.rods.rods if phantom.rods else ()
    verdicts: list[Verdict] = []
    notes = [f"{one.scan.name}: {note}" for one in measured for note in one.notes]
    reference = {check.key: check for check in measured[0].checks}
    for one in measured:
        is_first = one is measured[0]
        verdicts += limit_verdicts(one, settings.limits, rods)
        if not is_first:
            verdicts += change_verdicts(one, reference, settings.after, "before")
            notes += [f"{one.scan.name}: {key} could not be compared" for key in incomparable(one, reference, settings.after)]
        if match := matching_baseline(one.scan.name, earlier, is_first=is_first):
            notes += refuse_other_conditions(one, match, rods)
            verdicts += change_verdicts(one, match.checks, settings.baseline, "baseline")
            missing = incomparable(one, match.checks, settings.baseline)
            notes += [f"{one.scan.name}: {key} could not be compared with the baseline" for key in missing]
        elif earlier:
            notes.append(f"the baseline has no scan {one.scan.name!r}: it was not compared with it")
    summary = summary_of(verdicts)
    progress("writing")
    today = datetime.date.today().isoformat()
    results = results_of(measured, phantom, verdicts, settings=settings, measured_on=today, notes=notes)
    write_whole(out / RESULTS, json.dumps(json_safe(results), indent=1, ensure_ascii=False) + "\n")
    write_whole(out / TABLE, table_text(measured, verdicts))
    write_provenance(out, settings)
    write_physics_page(
        out / PAGE,
        measured,
        phantom,
        places,
        verdicts,
        summary=summary,
        notes=notes,
        measured_on=today,
        settings_hash=settings.hash(),
    )
    return PhysicsOutcome(
        title=f"{2 * phantom.body.radius_mm:.1f} mm phantom, {len(rods)} rods",
        table=screen_rows(measured, verdicts),
        notes=tuple(notes),
        summary=summary,
        failed=sum(not verdict.passed for verdict in verdicts),
        page=out / PAGE,
    )


def refuse_other_grid(before: PhantomScan, after: PhantomScan) -> None:
    """Raises: DataError if a scan after does not have the slices and pixels of the scan before."""
    shapes = ["×".join(map(str, one.hu.shape[1:])) for one in (before, after)]
    if shapes[0] != shapes[1] or not np.isclose(before.pixel_mm, after.pixel_mm, rtol=1e-3):
        raise DataError(
            f"the {after.name} scan has {shapes[1]} voxels of {after.pixel_mm:.4g} mm, the {before.name} scan {shapes[0]} of "
            f"{before.pixel_mm:.4g} mm (slices × rows × columns); give the same slices before and after"
        )


def refuse_moved_phantom(before: PhantomScan, after: PhantomScan, phantom: Phantom) -> None:
    """Raises: DataError if a scan after does not show the phantom where the scan before does."""
    body = find_body(after.images(phantom.uniform.slices).mean(axis=0), pixel_mm=after.pixel_mm)
    moved = float(np.hypot(body.row - phantom.body.row, body.column - phantom.body.column) * after.pixel_mm)
    if moved > MOVED_MM or abs(body.radius_mm - phantom.body.radius_mm) > MOVED_MM:
        raise DataError(
            f"the phantom of the {after.name} scan is {2 * body.radius_mm:.1f} mm wide and {moved:.1f} mm away from that of the "
            f"{before.name} scan, {2 * phantom.body.radius_mm:.1f} mm; give the same scan before and after"
        )


# --- what is written --------------------------------------------------------------------------------------------------------


def results_of(
    measured: Sequence[Measured],
    phantom: Phantom,
    verdicts: Sequence[Verdict],
    *,
    settings: PhysicsSettings,
    measured_on: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything as plain numbers and texts; no path, no name, no UID."""
    rods = phantom.rods.rods if phantom.rods else ()
    return {
        "format": FORMAT,
        "finegrain": __version__,
        "measured_on": measured_on,
        "summary": summary_of(verdicts),
        "passed": all(verdict.passed for verdict in verdicts) if verdicts else None,
        "phantom": {
            "row": phantom.body.row,
            "column": phantom.body.column,
            "diameter_mm": 2 * phantom.body.radius_mm,
            "outline_rms_mm": phantom.body.rms_mm,
            "uniform_slices": [phantom.uniform.slices.start + 1, phantom.uniform.slices.stop],
            "rod_slices": [phantom.rods.slices.start + 1, phantom.rods.slices.stop] if phantom.rods else None,
            "rods": [
                {key: value for key, value in asdict(rod).items() if key != "radius_mm"} | {"diameter_mm": 2 * rod.radius_mm}
                for rod in rods
            ],
        },
        "quantities": {name: asdict(quantity) for name, quantity in QUANTITIES.items()},
        "scans": [_scan_results(one) for one in measured],
        "verdicts": [_open_ends(asdict(verdict)) for verdict in verdicts],
        "notes": list(notes),
        "settings": settings.model_dump(mode="json"),
    }


def _open_ends(verdict: dict[str, Any]) -> dict[str, Any]:
    return {("allowed_" + key if key in ("low", "high") else key): value for key, value in verdict.items()}


def _scan_results(one: Measured) -> dict[str, Any]:
    scan = one.scan
    found: dict[str, Any] = {
        "name": scan.name,
        "facts": scan.facts,
        "n_repeats": scan.n_repeats,
        "n_slices": scan.hu.shape[1],
        "pixel_mm": scan.pixel_mm,
        "slice_mm": scan.slice_mm,
        "thickness_mm": scan.thickness_mm,
        "checks": [asdict(check) | {"unit": QUANTITIES[check.quantity].unit} for check in one.checks],
        "profiles": {"place_mm": one.profile_mm.tolist()} | {name: hu.tolist() for name, hu in one.profiles.items()},
        "ttf": {
            name: {
                "contrast_hu": ttf.contrast_hu,
                "total_cnr": ttf.total_cnr,
                "frequency_per_mm": ttf.frequency_per_mm.tolist(),
                "ttf": ttf.ttf.tolist(),
            }
            for name, ttf in one.ttf.items()
        },
    }
    if one.nps is not None:
        found["nps"] = {
            "unit": "HU² mm²",
            "n_squares": one.nps.whole.n_rois,
            "side_pixels": one.nps.side,
            "frequency_per_mm": one.nps.radial.frequency_per_mm.tolist(),
            "radial": one.nps.radial.power.tolist(),
            "standard_error": one.nps.standard_error.tolist(),
            "two_dimensional": one.nps.whole.power.tolist(),
        }
    return found


def table_text(measured: Sequence[Measured], verdicts: Sequence[Verdict]) -> str:
    """One row per check and comparison, as CSV with a heading; a check that is compared with nothing has one row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    judged = [field.name for field in fields(Verdict)][2:]
    renamed = {"low": "allowed_low", "high": "allowed_high", "source": "tolerance_source"}
    heading = ["scan", "check", "place", "unit", "value", "interval_low", "interval_high", "n"]
    writer.writerow([*heading, *(renamed.get(name, name) for name in judged), "method_source"])
    for one in measured:
        for check in one.checks:
            quantity = QUANTITIES[check.quantity]
            start = [one.scan.name, check.quantity, check.place, quantity.unit, check.value, check.low, check.high, check.n]
            of_check = [v for v in verdicts if (v.scan, v.key) == (one.scan.name, check.key)]
            if not of_check:
                writer.writerow([_cell(value) for value in (*start, *[""] * len(judged), quantity.source)])
            for verdict in of_check:
                writer.writerow([_cell(value) for value in (*start, *astuple(verdict)[2:], quantity.source)])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return {None: "", True: "yes", False: "no"}.get(value, value) if value is None or isinstance(value, bool) else value


def screen_rows(measured: Sequence[Measured], verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Rows for the terminal: one per check, a column per scan, and whether it passes."""
    rows = [["check", "unit", *(one.scan.name for one in measured), "verdict"]]
    for key in all_keys(measured):
        found = [one.check(key) for one in measured]
        check = next(one for one in found if one is not None)
        quantity = QUANTITIES[check.quantity]
        of_key = [verdict for verdict in verdicts if verdict.key == key]
        cells = [value_text(one) if one else "–" for one in found]
        by_scan = {one.scan.name: check.value for one, check in zip(measured, found, strict=True) if check}
        failed = "; ".join(_words(verdict, by_scan[verdict.scan]) for verdict in of_key if not verdict.passed)
        rows.append([f"{quantity.label}, {check.place}", quantity.unit, *cells, failed or ("pass" if of_key else "")])
    return rows


def _words(verdict: Verdict, value: float) -> str:
    decimals = QUANTITIES[verdict.key.partition("[")[0]].decimals
    return f"FAIL {verdict.scan} against {verdict.against}: {allowed_text(verdict, decimals, value)}"
