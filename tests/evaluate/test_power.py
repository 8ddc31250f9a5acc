import json
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from finegrain.errors import DataError
from finegrain.evaluate.power import _tost_power as tost_power
from finegrain.evaluate.power import (
    patients_needed,
    patients_needed_for_equivalence,
    plan_patients,
    plans_in_words,
    power_of,
    power_of_equivalence,
    smallest_detectable,
)
from finegrain.evaluate.stats import compare_paired, compare_with_each


@pytest.mark.parametrize("n", [6, 9, 20, 60, 100])
@pytest.mark.parametrize("dz", [0.0, 0.1, 0.5, 1.0, -0.5])
def test_power_agrees_with_statsmodels(n, dz):
    assert power_of(n, difference=dz * 0.3, sd=0.3) == pytest.approx(TTestPower().power(dz, n, 0.05), abs=1e-7)


def test_power_agrees_with_published_values_of_r():
    # pwr.t.test(d = 0.02, n = 33, sig.level = 0.05, type = "paired"): power = 0.05142498
    assert power_of(33, difference=0.02, sd=1) == pytest.approx(0.05142498, abs=5e-9)
    # pwr.t.test(power = .8, n = 32, type = "paired", sig.level = .05): d = 0.5112738
    assert smallest_detectable(32, sd=1) == pytest.approx(0.5112738, abs=5e-7)
    # pwr.t.test(d = 0.15, power = 0.8, sig.level = 0.05, type = "paired"): n = 350.7638
    assert patients_needed(difference=0.15, sd=1) == 351
    # pwr.t.test(d = 0.4, power = 0.9, sig.level = 0.05, type = "paired"): n = 67.07532
    assert patients_needed(difference=0.4, sd=1, power=0.9) == 68


def test_power_of_equivalence_agrees_with_published_values_of_r():
    # PowerTOST: power.TOST(CV = 0.3, n = 40) gives 0.8158453; a 2 x 2 crossover, so n - 2 degrees and a variance of 2 s^2 / n
    error = math.sqrt(math.log(1 + 0.3**2)) * math.sqrt(2 / 40)
    assert tost_power(38, math.log(1.25) / error, math.log(0.95) / error, 0.05) == pytest.approx(0.8158453, abs=5e-8)


@pytest.mark.parametrize(
    ("n", "margin", "difference"), [(2, 9.0, 0.0), (6, 1.0, 0.2), (20, 0.7, 0.0), (20, 0.3, 0.0), (20, 0.7, 0.7)]
)
def test_power_of_equivalence_is_how_often_it_is_shown(n, margin, difference):
    rng = np.random.default_rng(0)
    samples = rng.normal(difference, 1, (40_000, n))
    half = stats.t.isf(0.05, n - 1) * samples.std(axis=1, ddof=1) / math.sqrt(n)
    shown = (np.abs(samples.mean(axis=1)) + half < margin).mean()
    assert power_of_equivalence(n, margin=margin, sd=1, difference=difference) == pytest.approx(shown, abs=0.008)


@pytest.mark.parametrize("n_comparisons", [1, 3])
@pytest.mark.parametrize("dz", [0.25, 0.5, 1.0, 1.5])
def test_one_patient_fewer_than_needed_is_not_enough(dz, n_comparisons):
    n = patients_needed(difference=dz, sd=1, n_comparisons=n_comparisons)
    assert power_of(n, difference=dz, sd=1, n_comparisons=n_comparisons) >= 0.8
    assert power_of(n - 1, difference=dz, sd=1, n_comparisons=n_comparisons) < 0.8
    assert smallest_detectable(n, sd=1, n_comparisons=n_comparisons) <= dz


def test_one_patient_fewer_than_needed_for_equivalence_is_not_enough():
    plan = {"margin": 0.2, "sd": 0.3, "difference": 0.05}
    n = patients_needed_for_equivalence(**plan)
    assert power_of_equivalence(n, **plan) >= 0.8 > power_of_equivalence(n - 1, **plan)
    assert n > patients_needed_for_equivalence(margin=0.2, sd=0.3)


def test_no_plan_is_smaller_than_what_a_wilcoxon_test_asks_for():
    assert patients_needed(difference=50, sd=1) == 6
    assert patients_needed(difference=50, sd=1, n_comparisons=3) == 7
    assert power_of(5, difference=50, sd=1) == 0
    assert smallest_detectable(6, sd=1, n_comparisons=3) == math.inf


def test_the_unit_does_not_matter_nor_does_the_sign():
    in_db, in_hu = patients_needed(difference=0.2, sd=0.31), patients_needed(difference=-200, sd=310)
    assert in_db == in_hu
    assert smallest_detectable(12, sd=310) == pytest.approx(1000 * smallest_detectable(12, sd=0.31))


def test_extreme_plans_have_numbers_and_not_nan():
    assert power_of(1000, difference=100, sd=1) == 1
    assert power_of(200_000, difference=0.01, sd=1) == pytest.approx(stats.norm.cdf(0.01 * math.sqrt(200_000) - 1.959964), abs=1e-4)
    with pytest.raises(DataError, match="more than 1,000,000 patients"):
        patients_needed(difference=1e-5, sd=1)


@pytest.mark.parametrize("dz", [0.6, 1.0])
def test_the_verdict_holds_its_power_with_three_patients_more(dz):
    n = patients_needed(difference=dz, sd=1) + 3
    rng = np.random.default_rng(4)
    shown = [compare_paired(rng.normal(dz, 1, n), np.zeros(n), n_resamples=49).is_significant() for _ in range(400)]
    assert 0.77 < np.mean(shown) < 0.92


def test_a_plan_speaks_of_what_a_small_pilot_leaves_open():
    rng = np.random.default_rng(0)
    proposed, baseline = rng.normal(0, 0.3, 8), np.zeros(8)
    plan = plan_patients(compare_paired(proposed, baseline, n_resamples=99), difference=0.2)
    assert plan.needed_low < plan.needed < plan.needed_high
    assert plan.needed == patients_needed(difference=0.2, sd=plan.sd)
    assert power_of(8, difference=plan.smallest_detectable, sd=plan.sd) == pytest.approx(0.8)
    assert plan.in_words(" dB").startswith(f"{plan.needed} patients show a difference of 0.2 dB with a power of 80%")
    among = compare_with_each(proposed, {"x": baseline, "y": baseline, "z": baseline}, n_resamples=99)["x"]
    assert plan_patients(among, difference=0.2).needed > plan.needed


def test_a_pilots_interval_of_its_spread_covers_the_true_need_in_95_percent():
    truth = patients_needed(difference=0.2, sd=0.3)
    spreads = np.random.default_rng(0).normal(0, 0.3, (40, 8))
    plans = [plan_patients(compare_paired(row, np.zeros(8), n_resamples=99), difference=0.2) for row in spreads]
    assert np.mean([plan.needed_low <= truth <= plan.needed_high for plan in plans]) > 0.88


def test_a_pilot_too_small_to_show_anything_says_so():
    plan = plan_patients(compare_paired([1.0, 1.2, 1.1, 0.9, 1.3], np.zeros(5), n_resamples=99), difference=0.2)
    assert plan.in_words().endswith("5 patients can show no difference at all")
    assert json.loads(json.dumps(plan.to_dict(), allow_nan=False))["smallest_detectable"] is None
    with pytest.raises(DataError, match="spread between at least two"):
        plan_patients(compare_paired([1.0], [0.0]), difference=0.2)


def test_plans_that_cannot_be_are_refused():
    for wrong in ({"sd": 0.0}, {"sd": 1.0, "power": 0.01}, {"sd": 1.0, "alpha": 0.0}, {"sd": 1.0, "n_comparisons": 0}):
        with pytest.raises(DataError, match="expected an SD above 0"):
            patients_needed(difference=0.2, **wrong)
    with pytest.raises(DataError, match="no number of patients"):
        patients_needed_for_equivalence(margin=0.1, sd=1, difference=0.1)
    with pytest.raises(DataError, match="margin must be positive"):
        power_of_equivalence(9, margin=0, sd=1)


def test_a_plan_is_left_out_where_the_pilot_cannot_tell():
    rng = np.random.default_rng(0)
    spread, alike = compare_paired(rng.normal(0, 1, 8), np.zeros(8)), compare_paired(np.ones(8), np.zeros(8))
    wild = compare_paired(rng.normal(0, 1e6, 8), np.zeros(8))
    found = plans_in_words({"a": spread, "b": alike, "c": wild}, difference=0.2, unit=" dB")
    assert len(found) == 1 and found[0].startswith("Against a: ")
