import json

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from finegrain.errors import DataError
from finegrain.evaluate.paired_tests import dz_interval
from finegrain.evaluate.stats import (
    BCA_FROM,
    compare_paired,
    compare_with_each,
    equivalence_with_each,
    equivalent,
    fewest_patients,
    holm,
    relative_improvement,
)

QUICK = {"n_resamples": 999}


def patients(n, shift, seed=0):
    rng = np.random.default_rng(seed)
    baseline = rng.normal(30, 2, n)
    return baseline + shift + rng.normal(0, 0.3, n), baseline


def test_the_interval_of_equal_differences_is_that_difference_for_few_patients_too():
    low, high, _ = compare_paired([31.0, 32.0, 33.0, 34.0], [30.5, 31.5, 32.5, 33.5]).interval()
    assert (low, high) == pytest.approx((0.5, 0.5))


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


# --- the permutation test -----------------------------------------------------------------------------------------------------


def by_scipy(differences, n_resamples):
    return scipy_stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=n_resamples, random_state=np.random.default_rng(0)
    ).pvalue


@pytest.mark.parametrize("differences", [[0.3, -0.1, 0.5, 0.2, 0.9, 0.4, -0.2], [1.0, 1, -1, 0, 0, 2], [1.0, -1, 2, -2]])
def test_the_permutation_p_counts_every_sign_pattern_of_few_patients(differences):
    result = compare_paired(differences, np.zeros(len(differences)), **QUICK)
    assert result.permutation_p == pytest.approx(by_scipy(np.array(differences), np.inf))


def test_the_permutation_p_of_many_patients_is_drawn_with_the_data_counted_in():
    a, b = patients(17, 3.0)
    assert compare_paired(a, b, n_resamples=999).permutation_p == pytest.approx(2 * 1 / 1000)
    a, b = patients(30, 0.08)
    drawn = compare_paired(a, b, n_resamples=9999)
    assert drawn.permutation_p == compare_paired(a, b, n_resamples=9999).permutation_p
    assert drawn.permutation_p == pytest.approx(drawn.t_p, abs=0.02)


@pytest.mark.parametrize("law", ["normal", "laplace"])
def test_under_the_null_the_tests_reject_about_as_often_as_they_say(law):
    rng = np.random.default_rng(1)
    results = [compare_paired(getattr(rng, law)(0, 1, 12), np.zeros(12), n_resamples=99) for _ in range(600)]
    for key in ("t_p", "wilcoxon_p", "permutation_p"):
        assert 0.03 < np.mean([getattr(result, key) < 0.05 for result in results]) < 0.07
    assert np.mean([result.is_significant() for result in results]) < 0.055


def test_three_comparators_without_a_difference_seldom_yield_a_claim():
    rng = np.random.default_rng(2)
    families = [
        compare_with_each(rng.normal(0, 1, 10), {k: rng.normal(0, 1, 10) for k in "xyz"}, n_resamples=99) for _ in range(40)
    ]
    assert np.mean([any(result.is_significant() for result in family.values()) for family in families]) < 0.09


# --- Holm ---------------------------------------------------------------------------------------------------------------------


def test_holm_agrees_with_statsmodels_keeps_the_order_and_never_lowers_a_p():
    p = np.random.default_rng(0).uniform(0, 0.2, 9)
    ours = np.array(holm(p))
    assert ours == pytest.approx(multipletests(p, method="holm")[1])
    assert (np.diff(ours[np.argsort(p)]) >= 0).all() and (ours >= p).all() and (ours <= 1).all()


# --- intervals and effect size ------------------------------------------------------------------------------------------------


def test_intervals_of_the_mean_agree_with_scipy():
    a, b = patients(25, 0.2)
    result = compare_paired(a, b, seed=3, n_resamples=999)
    assert (result.t_low, result.t_high) == pytest.approx(tuple(scipy_stats.ttest_rel(a, b).confidence_interval(0.95)))
    many = scipy_stats.bootstrap((a - b,), np.mean, n_resamples=20000, random_state=np.random.default_rng(1)).confidence_interval
    assert (result.interval_low, result.interval_high) == pytest.approx(tuple(many), abs=0.01)


def noncentral_t_cdf(t, degrees, shift):
    """From its definition: a shifted normal number over the root of a chi-square one, integrated over the latter."""

    def weighted(chi):
        return scipy_stats.norm.cdf(t * chi / np.sqrt(degrees) - shift) * scipy_stats.chi.pdf(chi, degrees)

    return integrate.quad(weighted, 0, np.sqrt(degrees) + 12, limit=200)[0]


@pytest.mark.parametrize(("n", "shift"), [(3, 0.2), (6, 1.0), (6, -1.0), (20, 0.1), (20, 3.0)])
def test_the_interval_of_dz_leaves_two_and_a_half_percent_on_either_side(n, shift):
    a, b = patients(n, shift)
    result = compare_paired(a, b, **QUICK)
    t = result.cohen_dz * np.sqrt(n)
    assert noncentral_t_cdf(t, n - 1, result.dz_low * np.sqrt(n)) == pytest.approx(0.975, abs=1e-5)
    assert noncentral_t_cdf(t, n - 1, result.dz_high * np.sqrt(n)) == pytest.approx(0.025, abs=1e-5)
    assert (result.dz_low > 0 or result.dz_high < 0) == (result.t_p < 0.05)


def test_without_a_patient_the_verdict_says_that_there_is_none():
    found = compare_with_each([31.0, 32.0], {"same": [np.inf, np.inf], "other": [30.0, 30.5]})
    assert found["same"].verdict() == "not testable: no patient has both values"
    assert "2 patients can reach no p" in found["other"].verdict()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n", [3, 12])
def test_the_interval_of_a_huge_dz_is_that_of_the_sd_and_ends(n, sign):
    """Differences that are nearly alike, as of two phantoms: beyond a t of some 100,000 the library's function never returns."""
    dz = sign * np.array([2e3, 2e4, 1e8]) * np.sqrt(3 / n)
    relative = np.array([dz_interval(float(one), n) / one for one in dz])
    assert relative[1] == pytest.approx(relative[0], rel=2e-3) and relative[2] == pytest.approx(relative[1])
    assert compare_paired(1e3 + 1e-6 * np.arange(n), np.zeros(n)).dz_low > 0


def test_hedges_gz_is_unbiased_where_cohens_dz_is_too_large():
    differences = np.random.default_rng(0).normal(1, 1, (4000, 6))
    dz = differences.mean(axis=1) / differences.std(axis=1, ddof=1)
    one = compare_paired(differences[0], np.zeros(6), **QUICK)
    factor = one.hedges_gz / one.cohen_dz
    assert factor == pytest.approx(1 - 3 / (4 * 5 - 1), rel=0.01)  # the usual approximation
    assert dz.mean() > 1.15
    assert factor * dz.mean() == pytest.approx(1, abs=0.03)


def test_the_share_of_patients_counts_ties_as_half_and_has_wilsons_interval():
    result = compare_paired([1.0, 2, 3, -1, 0, 0], np.zeros(6), **QUICK)
    assert result.share_higher == pytest.approx(4 / 6)
    eight = compare_paired(np.array([1.0, 2, 3, 4, 5, 6, 7, -8]), np.zeros(8), **QUICK)
    wilson = scipy_stats.binomtest(7, 8).proportion_ci(method="wilson")
    assert (eight.share_low, eight.share_high) == pytest.approx((wilson.low, wilson.high))


def test_swapping_the_methods_mirrors_every_number():
    a, b = patients(9, 0.3)
    one, other = compare_paired(a, b, **QUICK), compare_paired(b, a, **QUICK)
    for key in ("t_p", "wilcoxon_p", "permutation_p"):
        assert getattr(one, key) == pytest.approx(getattr(other, key))
    assert (one.t_low, one.dz_low, one.share_low) == pytest.approx((-other.t_high, -other.dz_high, 1 - other.share_high), rel=1e-5)


# --- warnings -----------------------------------------------------------------------------------------------------------------


def warned(result, words):
    return any(words in warning for warning in result.warnings)


def test_many_well_behaved_patients_bring_no_warning():
    assert compare_paired(*patients(25, 0.5), **QUICK).warnings == ()


@pytest.mark.parametrize("n", [3, BCA_FROM - 1, BCA_FROM])
def test_a_bootstrap_interval_of_few_patients_says_so_and_names_the_interval_to_read(n):
    assert warned(compare_paired(*patients(n, 0.5), **QUICK), "read the t interval") == (n < BCA_FROM)


def test_the_bootstrap_interval_of_few_patients_is_too_narrow_and_the_t_interval_is_not():
    rng = np.random.default_rng(0)
    results = [compare_paired(rng.normal(1, 1, 5), np.zeros(5), n_resamples=199) for _ in range(400)]
    assert np.mean([r.interval_low < 1 < r.interval_high for r in results]) < 0.90
    assert 0.92 < np.mean([r.t_low < 1 < r.t_high for r in results]) < 0.98


def test_fewer_patients_than_the_comparators_ask_for_are_named():
    a, b = patients(6, 3.0)
    assert not warned(compare_paired(a, b, **QUICK), "cannot be significant")
    among = compare_with_each(a, {"x": b, "y": b - 1, "z": b - 2}, **QUICK)["x"]
    assert warned(among, "the smallest p is 0.0938 after Holm over 3 comparators; at least 7 patients are needed")
    assert fewest_patients(n_comparisons=3) == 7 and not among.can_reach()
    a, b = patients(7, 3.0)
    assert compare_with_each(a, {"x": b, "y": b - 1, "z": b - 2}, **QUICK)["x"].is_significant()


def test_infinite_and_missing_values_are_told_apart():
    a, b = patients(9, 0.5)
    a[2], b[5], a[6], b[6] = np.nan, np.inf, np.inf, np.inf
    result = compare_paired(a, b, **QUICK)
    assert (result.n, result.n_excluded) == (6, 3)
    assert warned(result, "3 patients left out: 1 without a value, 2 with an infinite one (PSNR is infinite")
    nobody = compare_paired([np.inf, np.inf], [30.0, 31.0], **QUICK)
    assert nobody.n == 0 and nobody.verdict().startswith("not testable")


def test_one_patient_that_makes_the_mean_is_named_by_number_only():
    a = np.array([0.1, -0.2, 0.05, 0.15, -0.1, 9.0, 0.0, 0.12])
    result = compare_paired(a, np.zeros(8), **QUICK)
    assert warned(result, "one patient (number 6 of those compared)") and warned(result, "+0.0171 instead of +1.14")
    assert not warned(compare_paired([1, 1, 1, 1, 1.001], np.zeros(5), **QUICK), "far from the others")


def test_few_normal_samples_are_said_to_hold_an_outlier():
    rng = np.random.default_rng(3)
    results = [compare_paired(rng.normal(0, 1, 10), np.zeros(10), n_resamples=49) for _ in range(300)]
    assert np.mean([warned(result, "far from the others") for result in results]) < 0.03


def test_tests_that_disagree_are_reported_and_nothing_is_claimed():
    a = np.array([1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 40.0, 1.15])
    result = compare_paired(a, np.zeros(8), **QUICK)
    assert result.wilcoxon_p < 0.05 < result.t_p
    assert warned(result, "disagree") and not result.is_significant()


def test_no_significance_is_not_sold_as_no_difference():
    a, b = patients(10, 0.0)
    verdict = compare_paired(a, b, **QUICK).verdict()
    assert verdict.startswith("no significant difference") and verdict.endswith("does not show that there is none")


# --- relative improvement -----------------------------------------------------------------------------------------------------


def indices(n, ratio, seed=0):
    rng = np.random.default_rng(seed)
    baseline = rng.uniform(0.5, 1.5, n)
    return ratio * baseline * rng.normal(1, 0.1, n), baseline


def test_fiellers_ends_are_the_ratios_that_a_paired_t_test_just_rejects():
    a, b = indices(8, 0.9)
    result = relative_improvement(a, b, **QUICK)
    for end in (result.fieller_low, result.fieller_high):
        assert scipy_stats.ttest_rel(a, (1 - end) * b).pvalue == pytest.approx(0.05)
    assert result.fieller_low < result.value < result.fieller_high
    assert result.value == pytest.approx(1 - a.mean() / b.mean())


def test_fiellers_interval_is_none_where_the_baseline_may_be_zero():
    result = relative_improvement([0.1, 5.0, 0.2], [0.1, 9.0, 0.1], **QUICK)
    assert np.isnan(result.fieller_low) and "no interval" in result.in_words()


def test_intervals_of_the_improvement_cover_the_truth_about_as_often_as_they_say():
    results = [relative_improvement(*indices(20, 0.9, seed), n_resamples=299) for seed in range(300)]
    assert 0.88 < np.mean([r.interval_low < 0.1 < r.interval_high for r in results]) < 0.98
    assert 0.92 < np.mean([r.fieller_low < 0.1 < r.fieller_high for r in results]) < 0.98


def test_the_p_of_an_improvement_is_that_of_swapping_both_values_of_a_patient():
    a, b = indices(7, 0.93)
    swaps = (np.arange(2**7)[:, None] >> np.arange(7)) & 1
    ratio = np.where(swaps, b, a).sum(axis=1) / np.where(swaps, a, b).sum(axis=1)
    one_sided = min((ratio <= ratio[0] + 1e-12).mean(), (ratio >= ratio[0] - 1e-12).mean())
    assert relative_improvement(a, b, **QUICK).permutation_p == pytest.approx(min(1, 2 * one_sided))


def test_the_unit_of_the_index_does_not_matter():
    a, b = indices(9, 0.9)
    one, other = relative_improvement(a, b, **QUICK), relative_improvement(1024 * a, 1024 * b, **QUICK)
    assert (one.value, one.interval_low, one.fieller_high) == pytest.approx((other.value, other.interval_low, other.fieller_high))


def test_an_improvement_is_worded_with_the_interval_that_n_deserves():
    few, many = (relative_improvement(*indices(n, 0.9), **QUICK) for n in (8, 25))
    assert f"{100 * few.fieller_low:.1f} to" in few.in_words() and "read Fieller's interval" in few.warnings[0]
    assert f"{100 * many.interval_low:.1f} to" in many.in_words() and many.warnings == ()
    worse, neither = (relative_improvement(*indices(25, ratio), **QUICK) for ratio in (1.2, 0.97))
    ends = f"{-100 * worse.interval_high:.1f} to {-100 * worse.interval_low:.1f} %"
    assert f" % worse, 95 % interval {ends} (" in worse.in_words()
    ends = f"{-100 * neither.interval_low:.1f} % worse to {100 * neither.interval_high:.1f} % better"
    assert f"95 % interval {ends} (" in neither.in_words()
    for n in (0, 1, 2):
        json.dumps(relative_improvement(*indices(n, 0.9), **QUICK).to_dict(), allow_nan=False)
    with pytest.raises(DataError, match="positive"):
        relative_improvement([0.1, 0.0], [0.1, 0.2])


# --- equivalence --------------------------------------------------------------------------------------------------------------


def test_methods_that_differ_by_the_margin_are_seldom_called_equivalent():
    differences = np.random.default_rng(0).normal(0.5, 1, (600, 25))
    found = [equivalent(row, np.zeros(25), margin=0.5).is_equivalent() for row in differences]
    assert 0.03 < np.mean(found) < 0.07


def test_equivalence_of_few_patients_is_warned_of_and_what_is_not_shown_is_not_called_different():
    four, five = (equivalent(*patients(n, 0.0), margin=2.0) for n in (4, 5))
    assert warned(four, "unproven normal law") and five.warnings == ()
    assert five.verdict().startswith("equivalent within ±2 (n = 5")
    assert equivalent(*patients(5, 0.0), margin=0.01).verdict().startswith("not shown to be equivalent")
    assert equivalent([1.0, np.inf, 1.2], [1.0, 1.0, 1.0], margin=1).n_excluded == 1


def test_equivalence_with_each_names_whom_it_holds_for():
    generator = np.random.default_rng(3)
    ours = 30 + generator.normal(0, 1, 12)
    others = {"same": ours + generator.normal(0, 0.02, 12), "other": ours + 0.5 + generator.normal(0, 0.02, 12), "itself": ours}
    tested, words = equivalence_with_each(ours, others, margin=0.1, unit=" dB")
    assert [tested[name].is_equivalent() for name in others] == [True, False, False]
    assert len(words) == 2 and words[0].startswith("Against same, ") and "equivalent within ±0.1" in words[0]
    assert "not shown to be equivalent" in words[1] and "−0.5" in words[1]
