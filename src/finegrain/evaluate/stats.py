"""Statistics per patient: paired tests, Holm, intervals, effect size, equivalence. The unit is the patient, never the slice.

How many patients a study needs is in `power`, what the luck of a training adds in `seeds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from finegrain.errors import DataError
from finegrain.evaluate.paired_tests import (
    bootstrap_interval,
    bootstrap_ratio_interval,
    dz_interval,
    fieller_interval,
    is_constant,
    permutation_p,
    small_sample_factor,
    wilcoxon_p,
)
from finegrain.files import json_safe

ALPHA = 0.05
"""Significance level of the paper."""

BCA_FROM = 20
"""Patients from which the BCa interval is trusted. Measured over 2,000 samples of a normal law each, it covers the true mean
in 85 % at 5 patients, 90 % at 10, 93 % at 20 and 94 % at 40; the t interval in 95 % throughout."""

OUTLIER_ALPHA = 0.01
"""Level at which one patient counts as an outlier (two-sided, over all patients); a default, taken from nowhere."""

OUTLIER_SHARE = 0.25
"""An outlier dominates if the mean without it moves by more than this part of itself; a default, taken from nowhere."""

NAN = float("nan")


@dataclass(frozen=True)
class PairedComparison:
    """Proposed minus baseline over patients.

    Attributes:
        n: patients with a finite value on both sides.
        n_excluded: patients left out because a value was missing.
        mean, sd: of the differences (sd with n − 1).
        t_p, wilcoxon_p: two-sided; the Wilcoxon test is exact (every sign pattern counted) up to 16 non-zero differences.
        permutation_p: two-sided sign-flip test of the mean; exact up to 16 patients, else drawn, with the data counted in.
        smallest_wilcoxon_p: what the Wilcoxon test would give if all n patients agreed: 2^(1−n).
        interval_low, interval_high: bootstrap 95 % interval of the mean difference, BCa.
        t_low, t_high: 95 % t interval of the mean difference: the one to read where patients are few.
        cohen_dz: mean / sd. dz_low, dz_high: its 95 % interval from the noncentral t distribution.
        hedges_gz: Cohen's d_z without its small-sample bias.
        share_higher: part of the patients in whom the proposed value is higher, ties as half: an estimate of the probability
            that it is in the next. share_low, share_high: its 95 % interval (Wilson).
        holm_p: the Wilcoxon p after Holm over `n_comparisons`; equals `wilcoxon_p` for a single comparison.
        n_comparisons: how many comparators share the family.
        reason: why a number is NaN; empty if none is.
        warnings: what a reader must know before believing the numbers, in plain words.
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
    permutation_p: float = NAN
    t_low: float = NAN
    t_high: float = NAN
    dz_low: float = NAN
    dz_high: float = NAN
    hedges_gz: float = NAN
    share_higher: float = NAN
    share_low: float = NAN
    share_high: float = NAN
    warnings: tuple[str, ...] = ()

    def can_reach(self, alpha: float = ALPHA) -> bool:
        """Whether this many patients can be significant at all, were all of them to agree with all comparators."""
        return self.smallest_wilcoxon_p * self.n_comparisons < alpha

    def is_significant(self, alpha: float = ALPHA) -> bool:
        """Whether the Holm-corrected Wilcoxon p lies below alpha and so does the paired t p; both, so that none is chosen."""
        return self.can_reach(alpha) and self.holm_p < alpha and self.t_p < alpha

    def verdict(self, alpha: float = ALPHA) -> str:
        """One sentence that a reader may quote; it never claims what n patients cannot show."""
        if self.n == 0:
            return f"not testable: {self.reason}"
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
        return f"no significant difference (n = {self.n}, {p}), which does not show that there is none"

    def interval(self) -> tuple[float, float, str]:
        """The 95 % interval of the mean that can be trusted at this number of patients, and its name."""
        if self.n < BCA_FROM and math.isfinite(self.t_low):  # it is not where all differences are equal
            return self.t_low, self.t_high, "t"
        return self.interval_low, self.interval_high, "BCa"

    def to_dict(self) -> dict[str, Any]:
        """The fields, the interval to read and the verdict, fit for JSON: what is not finite becomes None."""
        return {**json_safe(asdict(self)), "interval": json_safe(self.interval()), "verdict": self.verdict()}


def compare_paired(proposed: ArrayLike, baseline: ArrayLike, *, seed: int = 0, n_resamples: int = 9999) -> PairedComparison:
    """Compare one value per patient between two methods, in the same order of patients.

    Patients with a missing value on either side are left out and counted. Differences of exactly zero count for the t test
    and not for the Wilcoxon test, as Wilcoxon had it.

    Shape: (patient,) both. Raises: DataError if the lengths differ.

    >>> compare_paired([31.2, 30.9, 31.5], [30.0, 30.1, 30.2]).smallest_wilcoxon_p
    0.25
    """
    return _compare(proposed, baseline, n_comparisons=1, seed=seed, n_resamples=n_resamples)


def _compare(proposed: ArrayLike, baseline: ArrayLike, *, n_comparisons: int, seed: int, n_resamples: int) -> PairedComparison:
    a, b, left_out = _paired(proposed, baseline)
    difference = a - b
    n = len(difference)
    mean = float(difference.mean()) if n else NAN
    sd = float(difference.std(ddof=1)) if n > 1 else NAN
    varies = n > 1 and not is_constant(difference)
    t_p = float(stats.ttest_1samp(difference, 0.0).pvalue) if varies else (1.0 if n > 1 and mean == 0 else NAN)
    rank_p = wilcoxon_p(difference)
    low, high = bootstrap_interval(difference, seed=seed, n_resamples=n_resamples)
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n) if varies else NAN
    dz_low, dz_high = dz_interval(mean / sd, n) if varies else (NAN, NAN)
    higher = float((difference > 0).sum() + 0.5 * (difference == 0).sum())
    share_low, share_high = proportion_confint(higher, n, method="wilson") if n else (NAN, NAN)
    return PairedComparison(
        n=n,
        n_excluded=len(np.atleast_1d(np.asarray(proposed))) - n,
        mean=mean,
        sd=sd,
        t_p=t_p,
        wilcoxon_p=rank_p,
        smallest_wilcoxon_p=smallest_wilcoxon_p(n),
        interval_low=low,
        interval_high=high,
        cohen_dz=mean / sd if varies else NAN,
        holm_p=rank_p,
        n_comparisons=n_comparisons,
        reason=_reason(difference),
        permutation_p=permutation_p(difference, seed=seed, n_resamples=n_resamples),
        t_low=mean - half,
        t_high=mean + half,
        dz_low=dz_low,
        dz_high=dz_high,
        hedges_gz=small_sample_factor(n - 1) * mean / sd if varies else NAN,
        share_higher=higher / n if n else NAN,
        share_low=float(share_low),
        share_high=float(share_high),
        warnings=(
            *left_out,
            *_cannot_reach(n, n_comparisons),
            *_narrow_bootstrap(n, "the t interval"),
            *_dominated(difference),
            *_tests_disagree(n, t_p, rank_p),
        ),
    )


def _paired(proposed: ArrayLike, baseline: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """The patients that have a finite value on both sides, and a warning that counts the others."""
    a, b = np.atleast_1d(np.asarray(proposed, dtype=np.float64)), np.atleast_1d(np.asarray(baseline, dtype=np.float64))
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(f"expected one value per patient on both sides, got shapes {a.shape} and {b.shape}")
    missing = np.isnan(a) | np.isnan(b)
    infinite = (np.isinf(a) | np.isinf(b)) & ~missing
    causes = [f"{missing.sum()} without a value"] if missing.any() else []
    if infinite.any():
        causes.append(f"{infinite.sum()} with an infinite one (PSNR is infinite where an image equals its reference)")
    known = ~(missing | infinite)
    warnings = (f"{_patients(int((~known).sum()))} left out: {', '.join(causes)}",) if causes else ()
    return a[known], b[known], warnings


def _reason(difference: NDArray) -> str:
    if len(difference) == 0:
        return "no patient has both values"
    if len(difference) == 1:
        return "one patient has no spread: no test, no interval"
    if is_constant(difference):
        return "all patients differ by the same amount: no t test, no effect size"
    if len(difference) == 2:
        return "two patients: too few for a bootstrap interval"
    return ""


def _cannot_reach(n: int, n_comparisons: int) -> tuple[str, ...]:
    smallest = smallest_wilcoxon_p(n) * n_comparisons
    if smallest < ALPHA:
        return ()
    among = f" after Holm over {n_comparisons} comparators" if n_comparisons > 1 else ""
    return (
        f"{_patients(n)} cannot be significant in a two-sided Wilcoxon test: the smallest p is {min(smallest, 1):.3g}{among}; "
        f"at least {fewest_patients(n_comparisons=n_comparisons)} patients are needed",
    )


def _narrow_bootstrap(n: int, instead: str) -> tuple[str, ...]:
    if not 3 <= n < BCA_FROM:
        return ()
    return (f"the bootstrap interval of {n} patients is too narrow (trust it from {BCA_FROM} on): read {instead}",)


def _dominated(difference: NDArray[np.float64]) -> tuple[str, ...]:
    """A warning if one patient lies far from the others (t test of the one against the rest, Bonferroni) and moves the mean."""
    n = len(difference)
    if n < 4 or is_constant(difference):
        return ()
    far = int(np.abs(difference - difference.mean()).argmax())
    rest = np.delete(difference, far)
    distance = abs(difference[far] - rest.mean())
    limit = stats.t.isf(OUTLIER_ALPHA / (2 * n), n - 2) * rest.std(ddof=1) * math.sqrt(n / (n - 1))
    if distance <= limit or distance / n <= OUTLIER_SHARE * abs(difference.mean()):
        return ()
    return (
        f"one patient (number {far + 1} of those compared) lies far from the others: without it the mean difference is "
        f"{rest.mean():+.3g} instead of {difference.mean():+.3g}",
    )


def _tests_disagree(n: int, t_p: float, rank_p: float) -> tuple[str, ...]:
    if smallest_wilcoxon_p(n) >= ALPHA or math.isnan(t_p) or (t_p < ALPHA) == (rank_p < ALPHA):
        return ()
    return (
        f"paired t (p = {t_p:.3g}) and Wilcoxon (p = {rank_p:.3g}) disagree: the differences are far from normal, or the "
        "case is close; no significance is claimed",
    )


def smallest_wilcoxon_p(n: int) -> float:
    """The two-sided p if all of n patients agree; no test of them falls below it.

    >>> smallest_wilcoxon_p(5)
    0.0625
    """
    return min(2.0 ** (1 - n), 1.0)


def fewest_patients(*, alpha: float = ALPHA, n_comparisons: int = 1) -> int:
    """The patients with whom a Wilcoxon test can be significant, were all of them to agree with all comparators.

    >>> fewest_patients(), fewest_patients(n_comparisons=3)
    (6, 7)
    """
    n = 1
    while smallest_wilcoxon_p(n) * n_comparisons >= alpha:
        n += 1
    return n


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
    found = {
        name: _compare(proposed, values, n_comparisons=len(baselines), seed=seed, n_resamples=n_resamples)
        for name, values in baselines.items()
    }
    corrected = holm([comparison.wilcoxon_p for comparison in found.values()])
    return {name: replace(comparison, holm_p=p) for (name, comparison), p in zip(found.items(), corrected, strict=True)}


@dataclass(frozen=True)
class RelativeImprovement:
    """By what part a lower-is-better index is lower: 1 − mean(proposed) / mean(baseline) over patients.

    Attributes:
        n, n_excluded: patients compared, and left out because a value was missing.
        value: 0.08 is "8 % better"; negative is worse.
        interval_low, interval_high: bootstrap 95 % interval, BCa, both values of a patient drawn together.
        fieller_low, fieller_high: 95 % interval by Fieller's theorem: the one to read where patients are few.
        permutation_p: two-sided, proposed and baseline swapped within patients. A swap leaves the sum of both alone, so the
            ratio rises with the difference and this is the sign-flip test of the difference.
        reason, warnings: as in `PairedComparison`.
    """

    n: int
    n_excluded: int
    value: float
    interval_low: float
    interval_high: float
    fieller_low: float
    fieller_high: float
    permutation_p: float
    reason: str = ""
    warnings: tuple[str, ...] = ()

    def in_words(self) -> str:
        """The improvement with the interval that n patients deserve; a reader judges, no significance is claimed.

        >>> relative_improvement([1.0, 1.1, 0.9, 1.2], [1.2, 1.2, 1.1, 1.3]).in_words()
        '12.5 % better, 95 % interval 4.5 to 22.0 % (4 patients, permutation p = 0.125)'
        """
        if math.isnan(self.value):
            return f"no improvement can be stated: {self.reason}"
        low, high = (self.fieller_low, self.fieller_high) if self.n < BCA_FROM else (self.interval_low, self.interval_high)
        interval = "no interval" if math.isnan(low) else f"95 % interval {_better_or_worse_between(low, high)}"
        return f"{_better_or_worse(self.value)}, {interval} ({_patients(self.n)}, permutation p = {self.permutation_p:.3g})"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the words, fit for JSON: what is not finite becomes None."""
        return {**json_safe(asdict(self)), "in_words": self.in_words()}


def _better_or_worse(part: float) -> str:
    return f"{abs(100 * part):.1f} % {'better' if part >= 0 else 'worse'}"


def _better_or_worse_between(low: float, high: float) -> str:
    """Of one direction without its sign, as the value before it has none; each end in words where they go both ways."""
    if low < 0 <= high:
        return f"{_better_or_worse(low)} to {_better_or_worse(high)}"
    near, far = sorted((abs(100 * low), abs(100 * high)))
    return f"{near:.1f} to {far:.1f} %"


def relative_improvement(
    proposed: ArrayLike, baseline: ArrayLike, *, seed: int = 0, n_resamples: int = 9999
) -> RelativeImprovement:
    """By what part the proposed index lies below the baseline's, one value per patient in one order.

    Shape: (patient,) both. Raises: DataError if the lengths differ or an index is not positive, for then a ratio says nothing.
    """
    a, b, left_out = _paired(proposed, baseline)
    n = len(a)
    if n and min(a.min(), b.min()) <= 0:
        raise DataError(f"a relative improvement needs positive values, got {min(a.min(), b.min()):g}; compare differences instead")
    low, high = bootstrap_ratio_interval(a, b, seed=seed, n_resamples=n_resamples)
    fieller_low, fieller_high = fieller_interval(a, b)
    return RelativeImprovement(
        n=n,
        n_excluded=len(np.atleast_1d(np.asarray(proposed))) - n,
        value=float(1 - a.mean() / b.mean()) if n else NAN,
        interval_low=1 - high,
        interval_high=1 - low,
        fieller_low=1 - fieller_high,
        fieller_high=1 - fieller_low,
        permutation_p=permutation_p(a - b, seed=seed, n_resamples=n_resamples),
        reason="" if n > 2 else "fewer than three patients: no interval" if n else "no patient has both values",
        warnings=(*left_out, *_cannot_reach(n, 1), *_narrow_bootstrap(n, "Fieller's interval"), *_dominated(a - b)),
    )


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t tests of proposed − baseline against ±margin.

    Attributes:
        n, mean, margin: patients, mean difference, and the margin in the metric's own unit.
        p: the larger of both one-sided p-values; below 0.05 the two are equivalent within the margin.
        interval_low, interval_high: 90 % t interval, which lies within ±margin exactly when p < 0.05.
        reason, warnings: as in `PairedComparison`.
    """

    n: int
    mean: float
    margin: float
    p: float
    interval_low: float
    interval_high: float
    reason: str = ""
    n_excluded: int = 0
    warnings: tuple[str, ...] = ()

    def is_equivalent(self, alpha: float = ALPHA) -> bool:
        """Whether the difference is shown to be smaller than the margin either way."""
        return self.p < alpha

    def verdict(self, alpha: float = ALPHA) -> str:
        """One sentence that a reader may quote; what is not shown is not called different."""
        if math.isnan(self.p):
            return f"not testable: {self.reason}"
        if self.is_equivalent(alpha):
            return f"equivalent within ±{self.margin:g} (n = {self.n}, TOST p = {self.p:.3g})"
        return f"not shown to be equivalent within ±{self.margin:g} (n = {self.n}, TOST p = {self.p:.3g})"

    def to_dict(self) -> dict[str, Any]:
        """The fields, `is_equivalent` and the verdict, fit for JSON: what is not finite becomes None."""
        return {**json_safe(asdict(self)), "is_equivalent": self.is_equivalent(), "verdict": self.verdict()}


def equivalent(proposed: ArrayLike, baseline: ArrayLike, *, margin: float) -> Equivalence:
    """Whether two methods are equivalent within ±margin over patients, by TOST (Schuirmann 1987).

    Shape: (patient,) both. Raises: DataError if the margin is not positive or the lengths differ.
    """
    if not margin > 0:
        raise DataError(f"an equivalence margin must be positive, got {margin}")
    a, b, left_out = _paired(proposed, baseline)
    difference = a - b
    n = len(difference)
    mean = float(difference.mean()) if n else NAN
    p = half = NAN
    if n > 1 and not is_constant(difference):
        above_low = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
        below_high = stats.ttest_1samp(difference, margin, alternative="less").pvalue
        p = float(max(above_low, below_high))
        half = float(stats.t.ppf(0.95, n - 1) * difference.std(ddof=1) / math.sqrt(n))
    return Equivalence(
        n=n,
        mean=mean,
        margin=margin,
        p=p,
        interval_low=mean - half,
        interval_high=mean + half,
        reason=_reason(difference) if math.isnan(p) else "",
        n_excluded=len(np.atleast_1d(np.asarray(proposed))) - n,
        warnings=(*left_out, *_unproven_normality(n), *_dominated(difference)),
    )


def equivalence_with_each(
    proposed: ArrayLike, others: Mapping[str, ArrayLike], *, margin: float, unit: str
) -> tuple[dict[str, Equivalence], list[str]]:
    """`equivalent` for each of several methods, one value per patient in one order, and a sentence for each that can be tested."""
    tested = {name: equivalent(proposed, values, margin=margin) for name, values in others.items()}
    words = []
    for name, found in tested.items():
        if not math.isnan(found.p):
            numbers = (found.mean, found.interval_low, found.interval_high)
            mean, low, high = (f"{number:+.2f}".replace("-", "−") for number in numbers)
            words.append(f"Against {name}, {mean}{unit}, 90 % interval {low} to {high}: {found.verdict()}")
    return tested, words


def _unproven_normality(n: int) -> tuple[str, ...]:
    """A warning where two one-sided rank tests, were all patients to agree, could not reach the level that the t tests may."""
    if 0.5**n < ALPHA:
        return ()
    return (f"{_patients(n)}: equivalence would rest on an unproven normal law alone, no rank test could show it",)


def _patients(n: int) -> str:
    return f"{n} patient{'' if n == 1 else 's'}"
