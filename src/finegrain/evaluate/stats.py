"""Statistics per patient: paired tests, Holm, bootstrap, effect size, equivalence. The unit is the patient, never the slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from finegrain.errors import DataError
from finegrain.files import json_safe

ALPHA = 0.05
"""Significance level of the paper."""

NAN = float("nan")


@dataclass(frozen=True)
class PairedComparison:
    """Proposed minus baseline over patients.

    Attributes:
        n: patients with a finite value on both sides.
        n_excluded: patients left out because a value was missing.
        mean, sd: of the differences (sd with n − 1).
        t_p, wilcoxon_p: two-sided; the Wilcoxon test is exact (every sign pattern counted) up to 16 non-zero differences.
        smallest_wilcoxon_p: what the Wilcoxon test would give if all n patients agreed: 2^(1−n).
        interval_low, interval_high: bootstrap 95 % interval of the mean difference, BCa.
        cohen_dz: mean / sd.
        holm_p: the Wilcoxon p after Holm over `n_comparisons`; equals `wilcoxon_p` for a single comparison.
        n_comparisons: how many comparators share the family.
        reason: why a number is NaN; empty if none is.
    """

    n: int
    n_excluded: int
    mean: float
    sd: float
    t_p: float
    wilcoxon_p: float
    smallest_wilcoxon_p: float
    interval_low: float
    interval_high: float
    cohen_dz: float
    holm_p: float
    n_comparisons: int = 1
    reason: str = ""

    def can_reach(self, alpha: float = ALPHA) -> bool:
        """Whether this many patients can be significant at all, were all of them to agree with all comparators."""
        return self.smallest_wilcoxon_p * self.n_comparisons < alpha

    def is_significant(self, alpha: float = ALPHA) -> bool:
        """Whether the Holm-corrected Wilcoxon p lies below alpha and so does the paired t p; both, so that none is chosen."""
        return self.can_reach(alpha) and self.holm_p < alpha and self.t_p < alpha

    def verdict(self, alpha: float = ALPHA) -> str:
        """One sentence that a reader may quote; it never claims what n patients cannot show."""
        if not self.can_reach(alpha):
            family = f" (× {self.n_comparisons} comparators)" if self.n_comparisons > 1 else ""
            return (
                f"not testable: {_patients(self.n)} can reach no p below {self.smallest_wilcoxon_p:.3g}{family} in a "
                f"two-sided Wilcoxon test; no significance can be claimed at {alpha:g}"
            )
        if math.isnan(self.t_p):
            return f"not testable: {self.reason}"
        p = f"Wilcoxon p = {self.holm_p:.3g}{' after Holm' if self.n_comparisons > 1 else ''}, paired t p = {self.t_p:.3g}"
        if self.is_significant(alpha):
            return f"significantly {'higher' if self.mean > 0 else 'lower'} than the baseline (n = {self.n}, {p})"
        return f"no significant difference (n = {self.n}, {p})"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the verdict, fit for JSON: what is not finite becomes None."""
        return {**json_safe(asdict(self)), "verdict": self.verdict()}


def compare_paired(proposed: ArrayLike, baseline: ArrayLike, *, seed: int = 0, n_resamples: int = 9999) -> PairedComparison:
    """Compare one value per patient between two methods, in the same order of patients.

    Patients with a missing value on either side are left out and counted. Differences of exactly zero count for the t test
    and not for the Wilcoxon test, as Wilcoxon had it.

    Shape: (patient,) both. Raises: DataError if the lengths differ.

    >>> compare_paired([31.2, 30.9, 31.5], [30.0, 30.1, 30.2]).smallest_wilcoxon_p
    0.25
    """
    difference, n_excluded = _differences(proposed, baseline)
    n = len(difference)
    mean = float(difference.mean()) if n else NAN
    sd = float(difference.std(ddof=1)) if n > 1 else NAN
    low, high = _bootstrap_interval(difference, seed=seed, n_resamples=n_resamples)
    wilcoxon_p = _wilcoxon_p(difference)
    varies = n > 1 and not _is_constant(difference)
    return PairedComparison(
        n=n,
        n_excluded=n_excluded,
        mean=mean,
        sd=sd,
        t_p=float(stats.ttest_1samp(difference, 0.0).pvalue) if varies else (1.0 if n > 1 and mean == 0 else NAN),
        wilcoxon_p=wilcoxon_p,
        smallest_wilcoxon_p=smallest_wilcoxon_p(n),
        interval_low=low,
        interval_high=high,
        cohen_dz=mean / sd if varies else NAN,
        holm_p=wilcoxon_p,
        reason=_reason(difference),
    )


def _differences(proposed: ArrayLike, baseline: ArrayLike) -> tuple[NDArray[np.float64], int]:
    a, b = np.atleast_1d(np.asarray(proposed, dtype=np.float64)), np.atleast_1d(np.asarray(baseline, dtype=np.float64))
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(f"expected one value per patient on both sides, got shapes {a.shape} and {b.shape}")
    known = np.isfinite(a) & np.isfinite(b)
    return (a - b)[known], int((~known).sum())


def _is_constant(difference: NDArray) -> bool:
    """All alike but for rounding: a t statistic of them would be division by noise of the last bit."""
    return bool(np.ptp(difference) <= 1e-12 * max(1.0, float(np.abs(difference).max())))


def _reason(difference: NDArray) -> str:
    if len(difference) == 0:
        return "no patient has both values"
    if len(difference) == 1:
        return "one patient has no spread: no test, no interval"
    if _is_constant(difference):
        return "all patients differ by the same amount: no t test, no effect size"
    if len(difference) == 2:
        return "two patients: too few for a bootstrap interval"
    return ""


def _wilcoxon_p(difference: NDArray) -> float:
    """Two-sided signed-rank p. Exact with ties up to 16 patients: the usual normal approximation gives 0.04 for five."""
    if len(difference) == 0:
        return NAN
    nonzero = difference[difference != 0]
    if len(nonzero) == 0:
        return 1.0
    if len(nonzero) > 16:
        return float(stats.wilcoxon(nonzero).pvalue)
    rank = stats.rankdata(np.abs(nonzero))
    signs = 2.0 * ((np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero))) & 1) - 1
    possible = np.abs(signs @ rank)
    return float((possible >= abs(np.sign(nonzero) @ rank) - 1e-9).mean())


def smallest_wilcoxon_p(n: int) -> float:
    """The two-sided p if all of n patients agree; no test of them falls below it.

    >>> smallest_wilcoxon_p(5)
    0.0625
    """
    return min(2.0 ** (1 - n), 1.0)


def _bootstrap_interval(difference: NDArray, *, seed: int, n_resamples: int) -> tuple[float, float]:
    if len(difference) < 2:
        return NAN, NAN
    if _is_constant(difference):
        return float(difference[0]), float(difference[0])
    if len(difference) < 3:
        return NAN, NAN
    interval = stats.bootstrap(
        (difference,), np.mean, method="BCa", n_resamples=n_resamples, random_state=np.random.default_rng(seed)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, by Holm's step-down method; NaN stays NaN and does not count.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = np.isfinite(p)
    corrected = np.full(p.shape, NAN)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected.tolist()


def compare_with_each(
    proposed: ArrayLike, baselines: Mapping[str, ArrayLike], *, seed: int = 0, n_resamples: int = 9999
) -> dict[str, PairedComparison]:
    """Compare one method with each of several, Holm over all of them. Shape: (patient,) each, in one order of patients."""
    found = {name: compare_paired(proposed, values, seed=seed, n_resamples=n_resamples) for name, values in baselines.items()}
    corrected = holm([comparison.wilcoxon_p for comparison in found.values()])
    return {
        name: replace(comparison, holm_p=p, n_comparisons=len(found))
        for (name, comparison), p in zip(found.items(), corrected, strict=True)
    }


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t tests of proposed − baseline against ±margin.

    Attributes:
        n, mean, margin: patients, mean difference, and the margin in the metric's own unit.
        p: the larger of both one-sided p-values; below 0.05 the two are equivalent within the margin.
        interval_low, interval_high: 90 % t interval, which lies within ±margin exactly when p < 0.05.
        reason: why p is NaN; empty if it is not.
    """

    n: int
    mean: float
    margin: float
    p: float
    interval_low: float
    interval_high: float
    reason: str = ""

    def is_equivalent(self, alpha: float = ALPHA) -> bool:
        """Whether the difference is shown to be smaller than the margin either way."""
        return self.p < alpha

    def to_dict(self) -> dict[str, Any]:
        """The fields and `is_equivalent`, fit for JSON: what is not finite becomes None."""
        return {**json_safe(asdict(self)), "is_equivalent": self.is_equivalent()}


def equivalent(proposed: ArrayLike, baseline: ArrayLike, *, margin: float) -> Equivalence:
    """Whether two methods are equivalent within ±margin over patients, by TOST (Schuirmann 1987).

    Shape: (patient,) both. Raises: DataError if the margin is not positive or the lengths differ.
    """
    if not margin > 0:
        raise DataError(f"an equivalence margin must be positive, got {margin}")
    difference, _ = _differences(proposed, baseline)
    n = len(difference)
    mean = float(difference.mean()) if n else NAN
    if n < 2 or _is_constant(difference):
        return Equivalence(n, mean, margin, NAN, NAN, NAN, reason=_reason(difference))
    above_low = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
    below_high = stats.ttest_1samp(difference, margin, alternative="less").pvalue
    half = float(stats.t.ppf(0.95, n - 1) * difference.std(ddof=1) / math.sqrt(n))
    return Equivalence(n, mean, margin, float(max(above_low, below_high)), mean - half, mean + half)


def _patients(n: int) -> str:
    return f"{n} patient{'' if n == 1 else 's'}"
