import json

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

from finegrain.errors import DataError
from finegrain.evaluate.stats import compare_paired, compare_with_each, equivalent, holm

QUICK = {"n_resamples": 999}


def patients(n, shift, seed=0):
    rng = np.random.default_rng(seed)
    baseline = rng.normal(30, 2, n)
    return baseline + shift + rng.normal(0, 0.3, n), baseline


@pytest.mark.parametrize("n", [4, 8, 12, 25])
def test_p_values_agree_with_scipy(n):
    a, b = patients(n, 0.2)
    ours = compare_paired(a, b, **QUICK)
    assert ours.t_p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert ours.wilcoxon_p == pytest.approx(scipy_stats.wilcoxon(a, b).pvalue)
    assert ours.cohen_dz == pytest.approx((a - b).mean() / (a - b).std(ddof=1))


def test_tied_differences_are_tested_exactly():
    a = np.array([1.0, 1, 2, 2, -1, 3, 1, 2])
    exact = scipy_stats.wilcoxon(a, method=scipy_stats.PermutationMethod(n_resamples=2**8))
    assert compare_paired(a, np.zeros(8), **QUICK).wilcoxon_p == pytest.approx(exact.pvalue)


@pytest.mark.parametrize("differences", [[1, 2, 3, 4, 5], [1, 1, 1, 1, 1.001], [2, 2, 2, 2, 3], [100, 101, 102, 103, 104]])
def test_five_patients_are_never_significant(differences):
    result = compare_paired(differences, np.zeros(5), **QUICK)
    assert result.smallest_wilcoxon_p == 0.0625
    assert result.wilcoxon_p >= 0.0625
    assert not result.is_significant()
    assert result.verdict().startswith("not testable: 5 patients can reach no p below 0.0625")
    assert "significantly" not in result.verdict()


def test_six_patients_that_agree_are_significant_against_one_comparator_but_not_among_three():
    a, b = patients(6, 3.0)
    alone = compare_paired(a, b, **QUICK)
    assert alone.wilcoxon_p == pytest.approx(1 / 32)
    assert alone.is_significant() and "significantly higher" in alone.verdict()
    among = compare_with_each(a, {"x": b, "y": b - 1, "z": b - 2}, **QUICK)
    assert not any(result.is_significant() for result in among.values())
    assert "× 3 comparators" in among["x"].verdict()


def test_holm_is_applied_over_the_comparators():
    a, b = patients(12, 0.6)
    found = compare_with_each(a, {"near": a + patients(12, 0.05, 7)[0] * 0.01, "far": b}, **QUICK)
    expected = holm([found["near"].wilcoxon_p, found["far"].wilcoxon_p])
    assert [found["near"].holm_p, found["far"].holm_p] == expected
    assert all(result.n_comparisons == 2 for result in found.values())


def test_holm_has_its_known_answer_and_leaves_nan_out():
    assert holm([0.01, 0.02, float("nan"), 0.03])[:2] == pytest.approx([0.03, 0.04])
    assert np.isnan(holm([0.01, float("nan")])[1])
    assert holm([]) == []


def test_interval_covers_the_mean_and_repeats_with_its_seed():
    a, b = patients(10, 0.5)
    first, again, other = (compare_paired(a, b, seed=seed, **QUICK) for seed in (4, 4, 5))
    assert first.interval_low < first.mean < first.interval_high
    assert (first.interval_low, first.interval_high) == (again.interval_low, again.interval_high)
    assert first.interval_low != other.interval_low


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    results = [compare_paired(rng.normal(1, 1, 20), np.zeros(20), n_resamples=300) for _ in range(150)]
    assert 0.86 < np.mean([r.interval_low < 1 < r.interval_high for r in results]) <= 1


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_patients_give_nan_and_a_reason(n):
    result = compare_paired(np.arange(n) + 1.5, np.zeros(n), **QUICK)
    assert result.n == n
    assert np.isnan(result.interval_low) and result.reason
    assert result.verdict().startswith("not testable")
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_differences_without_spread_do_not_crash(shift):
    result = compare_paired(np.full(8, 30.0 + shift), np.full(8, 30.0), **QUICK)
    assert np.isnan(result.cohen_dz) and "same amount" in result.reason
    assert not result.is_significant()
    assert result.interval_low == pytest.approx(shift)
    assert equivalent(np.full(8, 1.0), np.full(8, 1.0), margin=0.1).to_dict()["p"] is None


def test_zero_differences_do_not_count_as_evidence():
    some = compare_paired([1, 2, 3, 4, 5, 0, 0, 0], np.zeros(8), **QUICK)
    assert some.wilcoxon_p == 0.0625


def test_missing_values_are_left_out_in_pairs_and_counted():
    a, b = patients(9, 0.5)
    a[2], b[5] = np.nan, np.inf
    result = compare_paired(a, b, **QUICK)
    assert (result.n, result.n_excluded) == (7, 2)


def test_equivalence_agrees_with_statsmodels():
    a, b = patients(12, 0.05)
    for margin in (0.05, 0.1, 0.3, 1.0):
        ours = equivalent(a, b, margin=margin)
        assert ours.p == pytest.approx(ttost_paired(a, b, -margin, margin)[0])
        assert ours.is_equivalent() == (-margin < ours.interval_low and ours.interval_high < margin)


def test_numbers_that_do_not_pair_are_refused():
    with pytest.raises(DataError, match="one value per patient"):
        compare_paired([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="margin"):
        equivalent([1, 2], [1, 3], margin=0)
