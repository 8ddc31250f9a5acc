import json

import numpy as np
import pytest
from scipy import stats

from finegrain.errors import DataError
from finegrain.evaluate.seeds import compare_over_seeds, mean_over_seeds
from finegrain.evaluate.stats import compare_paired


def table(n, n_seeds, *, shift=0.0, patients=1.0, seeds=0.0, rest=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return shift + rng.normal(0, patients, n)[:, None] + rng.normal(0, seeds, n_seeds) + rng.normal(0, rest, (n, n_seeds))


def against_zero(values, n_resamples=99):
    return compare_over_seeds(values, np.zeros((len(values), 1)), n_resamples=n_resamples)


def test_the_unit_stays_the_patient():
    values = table(9, 4, shift=0.5)
    result = against_zero(values)
    assert result.patients == compare_paired(values.mean(axis=1), np.zeros(9), n_resamples=99)
    assert result.patients.n == 9
    again = against_zero(np.repeat(values, 3, axis=1))
    assert again.patients.t_p == pytest.approx(result.patients.t_p)


def test_the_spread_of_the_seeds_is_that_of_their_means():
    values = table(30, 5, seeds=2.0)
    result = against_zero(values)
    assert result.seed_means == pytest.approx(values.mean(axis=0))
    assert result.seed_sd == pytest.approx(np.std(values.mean(axis=0), ddof=1))


def test_the_interval_covers_other_patients_and_other_trainings_about_as_often_as_it_says():
    for seeds, patients in ((1.0, 1.0), (1.0, 0.1), (0.0, 1.0)):
        tables = [table(8, 3, patients=patients, seeds=seeds, seed=seed) for seed in range(300)]
        found = [against_zero(values, n_resamples=99) for values in tables]
        assert 0.90 < np.mean([r.both_low < 0 < r.both_high for r in found]) < 0.99
        if seeds:
            assert np.mean([r.patients.t_low < 0 < r.patients.t_high for r in found]) < 0.85


def test_without_scatter_of_seeds_the_interval_is_the_patients_t_interval():
    values = np.repeat(table(10, 1), 4, axis=1)
    result = against_zero(values)
    assert (result.both_low, result.both_high) == pytest.approx((result.patients.t_low, result.patients.t_high))


def test_without_scatter_of_patients_the_interval_is_the_t_interval_of_the_seeds():
    means = np.array([0.1, 0.4, 0.3, 0.7])
    result = against_zero(np.tile(means, (6, 1)))
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (result.both_low, result.both_high) == pytest.approx(tuple(expected))


def test_a_lucky_training_is_no_claim_about_a_method():
    values = np.array([0.1, 1.0, 1.9]) + table(12, 3, patients=0.1, rest=0.05)
    result = against_zero(values)
    assert result.patients.is_significant() and not result.is_significant()
    assert "the methods cannot be told apart over patients and 3 seeds" in result.verdict()
    flips = against_zero(values - 0.6)
    assert "the sign of the mean difference depends on the seed" in flips.warnings


def test_a_difference_in_every_training_is_a_claim():
    result = against_zero(table(12, 3, shift=1.0, patients=0.2, seeds=0.05))
    assert result.is_significant()
    assert "significantly higher" in result.verdict() and "over patients and 3 seeds" in result.verdict()


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_fewer_than_three_seeds_speak_of_trainings_only(n_seeds):
    result = against_zero(table(12, n_seeds, shift=1.0, patients=0.2))
    assert np.isnan(result.both_low) and not result.is_significant()
    assert "of these trainings, not of the method" in result.verdict()
    assert f"{n_seeds} seed" in result.warnings[-1]
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_patient_that_lacks_one_seed_is_left_out():
    values = table(9, 3)
    values[4, 1], values[6, 0] = np.nan, np.inf
    result = against_zero(values)
    assert (result.patients.n, result.patients.n_excluded) == (7, 2)
    assert result.seed_means == pytest.approx(np.delete(values, [4, 6], axis=0).mean(axis=0))
    assert np.isnan(mean_over_seeds(values)[4])


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_patients_are_no_claim(n):
    result = against_zero(table(n, 3))
    assert result.verdict().startswith("not testable") and not result.is_significant()
    json.dumps(result.to_dict(), allow_nan=False)


def test_tables_that_do_not_match_are_refused():
    for a, b in ((np.zeros((4, 3)), np.zeros((4, 2))), (np.zeros((4, 3)), np.zeros((5, 3))), (np.zeros(4), np.zeros(4))):
        with pytest.raises(DataError, match="same patients and seeds"):
            compare_over_seeds(a, b)
    with pytest.raises(DataError, match=r"\(patient, seed\)"):
        mean_over_seeds([1.0, 2.0])
