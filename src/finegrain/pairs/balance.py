"""Sampling that is even over regions, patients, kernels and doses at once, and numbers that say how even it is.

Each factor alone could be made even by inverse frequency. Together they may contradict each other: a patient scanned from chest
to pelvis spreads over three regions, one whose head alone was scanned must carry as much weight as all three together. The
weights here make the factors as even as they can be together: among all weights under the cap they minimise the sum over
factors of the Kullback-Leibler divergence of its sampled shares from even shares. Where every factor can be even at once, this
is raking (iterative proportional fitting): all are even, and the weights are the nearest to uniform sampling that make them so.
Where not, as with patients nested in regions of unlike size, what cannot be had is shared out between the factors instead of
going to the last one fitted, and `balance_table` shows what each one got.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError

TOLERANCE = 1e-10
"""Fitting ends when no weight changes by more than this share; far below what sampling can show."""

MOST_SWEEPS = 3000
"""Fitting ends after so many sweeps at the latest; crossed factors take about fifty, contradictory ones get slowly better."""

MOST_WORK = 60_000_000
"""Sweeps times distinct rows times factors at most: about a second."""


@dataclass(frozen=True)
class BalanceRow:
    """How even one factor is, before and after weighting.

    Attributes:
        factor: its name.
        classes: how many classes are present.
        evenness_before, evenness_after: as `evenness`, in uniform sampling and with the weights.
        rarest_before, rarest_after: share of the class that is sampled least.
    """

    factor: str
    classes: int
    evenness_before: float
    evenness_after: float
    rarest_before: float
    rarest_after: float


@dataclass(frozen=True)
class BalanceTable:
    """One row for each factor, and what the weights cost.

    Attributes:
        rows: in the order of the factors.
        pairs: number of pairs.
        effective_pairs: as many pairs of equal weight would carry as much information.
    """

    rows: tuple[BalanceRow, ...]
    pairs: int
    effective_pairs: float

    def __str__(self) -> str:
        lines = [f"{'factor':<16}{'classes':>8}{'evenness':>18}{'rarest class':>20}"]
        for row in self.rows:
            even, rare = (
                f"{row.evenness_before:.3f} → {row.evenness_after:.3f}",
                f"{row.rarest_before:.2%} → {row.rarest_after:.2%}",
            )
            lines.append(f"{row.factor:<16}{row.classes:>8}{even:>18}{rare:>20}")
        return "\n".join([*lines, f"{self.effective_pairs:.0f} effective of {self.pairs} pairs"])


def balanced_weights(factors: Mapping[str, Sequence[Hashable]], *, most: float = 20.0) -> NDArray[np.float64]:
    """Sampling weight of each pair, summing to 1, that makes the classes of all factors as even as they can be together.

    Mirror descent in the divergence named above: every weight is multiplied by the geometric mean over factors of wanted over
    sampled share of its class, then brought back under the cap. Each sweep lowers the divergence.

    Args:
        factors: the class of every pair in each factor, e.g. region, patient, kernel, dose; all of one length.
        most: no pair is drawn more than this many times as often as in uniform sampling; 1 or more. The default is taken from
            nowhere: at 20 a rare pair is seen often, not learned by heart.

    Raises: DataError if there is no factor or no pair, if lengths differ, or if the cap cannot be held.
    """
    codes = _codes(factors)
    if not most >= 1:
        raise DataError(f"expected a cap of 1 or more, got {most}: weights cannot all be below uniform; raise it")
    cells, cell_of, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    cell_of = cell_of.reshape(-1)
    n, n_factors = codes.shape
    cap = most / n
    weight = np.full(len(cells), 1 / n)  # of one pair of the cell
    for _ in range(max(1, min(MOST_SWEEPS, MOST_WORK // cells.size))):
        step = np.zeros(len(cells))
        for column in cells.T:
            share = np.bincount(column, weights=weight * counts)
            step -= np.log(share * len(share))[column]
        fitted = _capped(weight * np.exp(step / n_factors), counts, cap)
        settled = (np.abs(fitted - weight) <= TOLERANCE * weight).all()  # no quotient: a weight may fall to nothing
        weight = fitted
        if settled:
            break
    result: NDArray[np.float64] = weight[cell_of]
    return result / result.sum()


def evenness(labels: Sequence[Hashable], weights: NDArray | None = None) -> float:
    """How evenly classes are sampled: Shannon entropy over its maximum; 1 is even, near 0 is one class; 1 for a single class.

    Raises: DataError if there is no label, or weights do not fit them.
    """
    shares = _shares(_codes({"labels": labels})[:, 0], weights)
    if len(shares) == 1:
        return 1.0
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum() / np.log(len(shares)))


def effective_pairs(weights: NDArray) -> float:
    """Kish's effective sample size: (Σw)² / Σw², the number of equally weighted pairs that inform as much.

    Source: Kish, Survey Sampling, 1965.
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.size == 0 or not w.sum() > 0:
        raise DataError(f"expected weights with a sum above 0, got {w.size} with sum {w.sum():g}; pass one weight for each pair")
    return float(w.sum() ** 2 / (w**2).sum())


def balance_table(factors: Mapping[str, Sequence[Hashable]], weights: NDArray) -> BalanceTable:
    """How even each factor is in uniform sampling and with these weights, and how many pairs that leaves.

    Raises: DataError if lengths differ.
    """
    codes = _codes(factors)
    rows = []
    for name, column in zip(factors, codes.T, strict=True):
        before, after = _shares(column, None), _shares(column, weights)
        rows.append(
            BalanceRow(
                name, len(before), evenness(column.tolist()), evenness(column.tolist(), weights), float(before.min()),
                float(after.min()),
            )
        )  # fmt: skip
    return BalanceTable(tuple(rows), len(codes), effective_pairs(weights))


def _codes(factors: Mapping[str, Sequence[Hashable]]) -> NDArray[np.int64]:
    """Class numbers from 0, shape (pair, factor)."""
    lengths = {name: len(labels) for name, labels in factors.items()}
    if not lengths or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
        raise DataError(f"expected one label for each pair in every factor, got lengths {lengths}; pass sequences of one length")
    columns = []
    for labels in factors.values():
        numbers: dict[Hashable, int] = {}
        columns.append([numbers.setdefault(label, len(numbers)) for label in labels])
    return np.array(columns, dtype=np.int64).T


def _shares(codes: NDArray[np.int64], weights: NDArray | None) -> NDArray[np.float64]:
    """Sampled share of each class."""
    if weights is not None and np.shape(weights) != codes.shape:
        raise DataError(f"{len(codes)} labels need as many weights, got shape {np.shape(weights)}")
    sums = np.bincount(codes, weights=weights).astype(np.float64)
    return sums / sums.sum()


def _capped(weight: NDArray[np.float64], counts: NDArray[np.int64], cap: float) -> NDArray[np.float64]:
    """The nearest weights, in the same divergence, that sum to 1 over all pairs and stay under the cap."""
    weight = weight / (weight * counts).sum()
    full = np.zeros(len(weight), dtype=bool)
    while (over := ~full & (weight > cap * (1 + 1e-12))).any():
        full |= over
        rest = 1 - cap * counts[full].sum()
        free = ~full
        weight = np.where(full, cap, weight * (max(rest, 0.0) / max((weight * counts)[free].sum(), 1e-300)))
    return weight
