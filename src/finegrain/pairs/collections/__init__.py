"""Real scans at two doses: each collection's layout is read by a module of its own, and all give `PairedScan`."""

from __future__ import annotations

from pathlib import Path

from finegrain.config import CollectionSource
from finegrain.errors import DataError
from finegrain.pairs.collections.folders import folder_pairs, series_at
from finegrain.pairs.collections.lodopab import is_lodopab, lodopab_normals, lodopab_pairs
from finegrain.pairs.collections.mayo import challenge_pairs, challenge_sides, is_challenge, is_tcia, tcia_pairs, tcia_sides
from finegrain.pairs.collections.paired import PairedScan, Series
from finegrain.pairs.collections.pseudonym import patient_label, pseudonym
from finegrain.pairs.collections.table import table_normals, table_pairs

__all__ = ["PairedScan", "Series", "find_pairs", "find_scans", "pseudonym"]

LAYOUTS = {"mayo": challenge_pairs, "tcia-ldct": tcia_pairs, "lodopab": lodopab_pairs, "csv": table_pairs}
"""What reads a layout that has one path."""


def find_pairs(source: CollectionSource, *, data_root: Path) -> tuple[list[PairedScan], tuple[str, ...]]:
    """Every pair of series of a collection, and a line on each thing that was left out and why; safe to show and store.

    A dose fraction or noise that the configuration gives goes before the collection's own rule, and a line of a CSV file before
    both.

    Raises: DataError if nothing pairs, or there is nothing at a path.
    """
    notes: list[str] = []
    if source.layout == "folders":
        assert source.low_dose is not None and source.normal_dose is not None  # the configuration has seen to it
        low_dose, normal_dose = data_root / source.low_dose, data_root / source.normal_dose
        pairs, left_out = folder_pairs(low_dose, normal_dose, dose_fraction=source.dose_fraction, noise=source.noise)
    else:
        path = data_root / source.path
        if not path.exists() or (source.layout != "csv" and source.layout != "auto" and not path.is_dir()):
            raise DataError(
                "expected a collection at its path, a folder or for csv a file, found none; paths start at the data root"
            )
        layout = source.layout if source.layout != "auto" else _layout_of(path)
        if layout is None:
            raise DataError(
                f"the collection has none of the layouts {', '.join(LAYOUTS)}; give layout: folders, or write a CSV; scans at "
                "one dose are simulated with --dose-fraction"
            )
        if source.layout == "auto":
            notes.append(f"taken for the layout {layout}")
        pairs, left_out = LAYOUTS[layout](path, dose_fraction=source.dose_fraction, noise=source.noise)
    notes += left_out
    if not pairs:
        why = f": {left_out[0]}" if left_out else ""
        more = f" ({len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise DataError(f"expected scans at two doses, no two series form a pair{why}{more}; check the layout and the paths")
    unique = {pair.fingerprint: pair for pair in reversed(pairs)}
    if len(unique) < len(pairs):
        notes.append(f"{len(pairs) - len(unique)} pairs of series are there twice and count once")
    return list(reversed(unique.values())), tuple(dict.fromkeys(notes))


def find_scans(path: Path) -> tuple[list[tuple[str, Series]], tuple[str, ...]]:
    """The normal-dose CT series of a tree, each with the label of its patient, and a line on each thing that was left out.

    Of a collection at two doses these are the series of the normal dose; of any other tree, all.

    Raises: DataError if there are none.
    """
    layout = _layout_of(path) if path.exists() else None
    scans: list[tuple[str, Series]] = []
    if layout == "csv":
        named, notes = table_normals(path)
        scans += named
    elif layout == "lodopab":
        lodopab, notes = lodopab_normals(path)
        scans += lodopab
    elif layout is not None:
        sides, notes = challenge_sides(path) if layout == "mayo" else tcia_sides(path)
        scans += [(label or patient_label("", series.fingerprint), series) for label, series in sides["normal"]]
    else:
        found, notes = series_at(path, "scan")
        scans += [(patient_label(series.patient_id, series.fingerprint), series) for series in found]
    if not scans:
        raise DataError(f"expected CT series, found none{f': {notes[0]}' if notes else ''}; check the path")
    if layout is not None:
        notes = [f"taken for the layout {layout}: only its normal dose is used, and nothing beside it", *notes]
    return scans, tuple(dict.fromkeys(notes))


def _layout_of(path: Path) -> str | None:
    """The layout that a path looks like; None if it looks like none."""
    if path.is_file():
        return "csv" if path.suffix.lower() == ".csv" else None
    looks = {"lodopab": is_lodopab, "mayo": is_challenge, "tcia-ldct": is_tcia}
    return next((layout for layout, is_it in looks.items() if is_it(path)), None)
