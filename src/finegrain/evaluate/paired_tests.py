"""p-values and intervals of paired differences, one number per patient in, two-sided, 95 %. `stats` puts them into words."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

EXACT_UP_TO = 16
"""Patients up to which every pattern of signs is counted: 65,536 patterns take some milliseconds."""

CERTAIN_T = 1e4
"""Size of t from which its own error counts for nothing beside that of the SD; far beyond, the library's function never ends."""

NAN = float("nan")


def is_constant(difference: NDArray) -> bool:
    """All alike but for rounding: a t statistic of them would be division by noise of the last bit."""
    return bool(np.ptp(difference) <= 1e-12 * max(1.0, float(np.abs(difference).max())))


def wilcoxon_p(difference: NDArray[np.float64]) -> float:
    """Two-sided signed-rank p. Exact with ties up to 16 patients: the usual normal approximation gives 0.04 for five."""
    if len(difference) == 0:
        return NAN
    nonzero = difference[difference != 0]
    if len(nonzero) > EXACT_UP_TO:
        return float(stats.wilcoxon(nonzero).pvalue)
    return _exact_sign_flip_p(np.sign(nonzero) * stats.rankdata(np.abs(nonzero)))


def permutation_p(difference: NDArray[np.float64], *, seed: int, n_resamples: int) -> float:
    """Two-sided p of the mean if proposed and baseline were swapped at random within each patient."""
    if len(difference) == 0:
        return NAN
    if len(difference) <= EXACT_UP_TO:
        return _exact_sign_flip_p(difference)
    found = stats.permutation_test(
        (difference,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _exact_sign_flip_p(values: NDArray[np.float64]) -> float:
    """Part of all sign patterns whose sum lies at least as far from zero as that of the values."""
    signs = 2.0 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1) - 1
    possible, found = np.abs(signs @ np.abs(values)), abs(values.sum())
    return float((possible >= found - 1e-9 * np.abs(values).sum()).mean())


def dz_interval(dz: float, n: int) -> tuple[float, float]:
    """The d_z under which the t found lies at the upper and at the lower 2.5 % of its noncentral distribution."""
    if abs(dz) * math.sqrt(n) > CERTAIN_T:
        ends = sorted(dz * math.sqrt(stats.chi2.ppf(probability, n - 1) / (n - 1)) for probability in (0.025, 0.975))
        return float(ends[0]), float(ends[1])
    low, high = (special.nctdtrinc(n - 1, probability, dz * math.sqrt(n)) / math.sqrt(n) for probability in (0.975, 0.025))
    return float(low), float(high)


def small_sample_factor(degrees: int) -> float:
    """What makes Cohen's d unbiased. Source: Hedges (1981)."""
    return math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) * math.sqrt(2 / degrees) if degrees > 1 else NAN


def bootstrap_interval(difference: NDArray[np.float64], *, seed: int, n_resamples: int) -> tuple[float, float]:
    """BCa 95 % interval of the mean; NaN below three patients, unless they are all alike."""
    if len(difference) < 2:
        return NAN, NAN
    if is_constant(difference):
        return float(difference[0]), float(difference[0])
    if len(difference) < 3:
        return NAN, NAN
    interval = stats.bootstrap(
        (difference,), np.mean, method="BCa", n_resamples=n_resamples, random_state=np.random.default_rng(seed)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def bootstrap_ratio_interval(a: NDArray[np.float64], b: NDArray[np.float64], *, seed: int, n_resamples: int) -> tuple[float, float]:
    """BCa 95 % interval of mean(a) / mean(b), both values of a patient drawn together; NaN below three patients."""
    if len(a) < 3:
        return NAN, NAN
    if is_constant(a / b):
        return float(a[0] / b[0]), float(a[0] / b[0])
    interval = stats.bootstrap(
        (a, b),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=n_resamples,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def fieller_interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """All ratios of means that a paired t test of a − ratio · b does not reject; NaN if they have no bounds.

    Source: Fieller (1954), J R Stat Soc B 16:175.
    """
    if len(a) < 3:
        return NAN, NAN
    t2 = float(stats.t.ppf(0.975, len(a) - 1)) ** 2 / len(a)
    covariance = np.cov(a, b)
    square = b.mean() ** 2 - t2 * covariance[1, 1]
    middle = a.mean() * b.mean() - t2 * covariance[0, 1]
    root = max(0.0, middle**2 - square * (a.mean() ** 2 - t2 * covariance[0, 0]))
    if square <= 0:
        return NAN, NAN
    return float((middle - math.sqrt(root)) / square), float((middle + math.sqrt(root)) / square)
