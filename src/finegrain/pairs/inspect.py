"""Looking at a finished store: the gallery of what was rejected, and the proof that damage is seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.pairs.damage import ProofRow, ProofTable, Specimen, prove
from finegrain.pairs.gallery import Entry, write_gallery
from finegrain.pairs.manifest import Pair
from finegrain.pairs.qc import Judged, QcLimits, judge
from finegrain.spread import spread

PROOF_PAIRS = 40
"""Good pairs that are damaged in every way: a minute, and rates to some per cent."""


def judged(pair: Pair) -> Judged:
    """A pair as the judge sees it."""
    if pair.quality is None:
        raise DataError(f"pair {pair.key} was never measured; build the pairs again")
    return Judged(
        quality=pair.quality,
        patient=pair.patient,
        source=pair.source,
        kernel=pair.kernel,
        dose_fraction=pair.dose_fraction,
        noise=pair.noise,
        fingerprint=pair.fingerprint,
    )


def write_store_gallery(store: Path, pairs: Sequence[Pair], out: Path, *, limits: QcLimits | None = None) -> Path:
    """Write the gallery of a store's pairs to an HTML file; gives its path."""
    rows = [judged(pair) for pair in pairs]
    verdicts = judge(rows, limits)
    entries = (
        Entry(pair.key, row, verdict, partial(_low_and_normal, pair, store))
        for pair, row, verdict in zip(pairs, rows, verdicts, strict=True)
    )
    write_gallery(entries, out, limits=limits, facts={"pairs": f"{len(pairs):,}"})
    return out


def proof_of_store(store: Path, pairs: Sequence[Pair], *, seed: int = 0, limits: QcLimits | None = None) -> ProofTable:
    """Damage some of a store's good pairs in every known way, and count what quality control finds.

    Raises: DataError if the store has no good pair with another slice of its scan beside it.
    """
    scans: dict[tuple[str, int, str, int | None], list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.verdict == "keep":
            scans[pair.patient, pair.source, pair.kernel, pair.rows].append(pair)
    whole = [scan for scan in scans.values() if len({pair.slice_index for pair in scan}) > 1]
    places = [(scan, k) for scan in whole for k in range(len(scan))]
    if not places:
        raise DataError("the proof needs good pairs of two slices of one scan; build more pairs")
    return prove([_specimen(store, *place) for place in spread(places, PROOF_PAIRS)], limits, seed=seed)


def proof_rows(table: ProofTable) -> list[list[str]]:
    """The proof as rows of a table, the first its heading; shares with 95 % intervals."""
    rows = [["damage", "n", "rejected", "rejected or borderline", "right reason"]]
    for row in (table.good, *table.damaged):
        shares = [_percent(row, count) for count in (row.rejected, row.flagged, row.reasoned)]
        rows.append([row.kind, str(row.n), *shares[:2], "" if row is table.good else shares[2]])
    return rows


def _percent(row: ProofRow, count: int) -> str:
    share, low, high = row.share(count)
    return f"{100 * share:.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def _specimen(store: Path, scan: list[Pair], k: int) -> Specimen:
    pair = scan[k]
    others = [other for other in scan if other.slice_index != pair.slice_index]
    neighbour = min(others, key=lambda other: abs(other.slice_index - pair.slice_index))
    low, normal = _low_and_normal(pair, store)
    return Specimen(
        low=low,
        normal=normal,
        neighbour_low=_low_and_normal(neighbour, store)[0],
        pixel_mm=pair.pixel_mm,
        patient=pair.patient,
        source=pair.source,
        kernel=pair.kernel,
        dose_fraction=pair.dose_fraction,
        noise=pair.noise,
    )


def _low_and_normal(pair: Pair, store: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    low, normal = pair.images(store)[:2].astype(np.float32)
    return low, normal
