"""What a store holds, in tables: sides, regions, verdicts, and how even the sampling is before and after balancing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from finegrain.config import Split
from finegrain.pairs.balance import balance_table, balanced_weights
from finegrain.pairs.manifest import Pair, balance_factors

Table = tuple[str, list[list[str]]]
"""A title, and rows of which the first is the heading."""


def summary_tables(pairs: Sequence[Pair]) -> list[Table]:
    """The tables of a store, rejected pairs counted too."""
    tables = [sides_table(pairs), verdicts_table(pairs)]
    training = [pair for pair in pairs if pair.split == "train" and pair.is_usable]
    if training:
        tables.append(evenness_table(training))
    return tables


def sides_table(pairs: Sequence[Pair]) -> Table:
    """Patients and usable pairs of each side, by region."""
    usable = [pair for pair in pairs if pair.is_usable]
    regions = sorted({pair.region for pair in usable})
    rows = [["side", "patients", "pairs", *regions]]
    for side in get_args(Split):
        own = [pair for pair in usable if pair.split == side]
        counts = Counter(pair.region for pair in own)
        rows.append([side, str(len({pair.patient for pair in own})), str(len(own)), *(str(counts[region]) for region in regions)])
    return "usable pairs", rows


def verdicts_table(pairs: Sequence[Pair]) -> Table:
    """How many pairs quality control kept, found borderline and rejected, and why."""
    rows = [["verdict", "pairs", "why"]]
    for verdict in ("keep", "borderline", "reject"):
        own = [pair for pair in pairs if pair.verdict == verdict]
        reasons = Counter(reason for pair in own for reason in pair.reasons.split("; ") if reason)
        rows.append([verdict, str(len(own)), ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())])
    return "quality control", rows


def evenness_table(training: Sequence[Pair]) -> Table:
    """How even training draws over regions, patients, kernels and doses: pair by pair, and balanced."""
    factors = balance_factors(training)
    table = balance_table(factors, balanced_weights(factors))
    rows = [["factor", "classes", "evenness", "balanced", "rarest class", "balanced"]]
    for row in table.rows:
        before, after = f"{row.evenness_before:.3f}", f"{row.evenness_after:.3f}"
        rows.append([row.factor, str(row.classes), before, after, f"{row.rarest_before:.2%}", f"{row.rarest_after:.2%}"])
    rows.append(["effective pairs", "", str(table.pairs), f"{table.effective_pairs:.0f}", "", ""])
    return "balance of training", rows
