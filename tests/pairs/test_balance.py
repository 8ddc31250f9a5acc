"""Sampling weights: their laws, known answers, and what happens where factors contradict each other."""

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finegrain.errors import DataError
from finegrain.pairs.balance import balance_table, balanced_weights, effective_pairs, evenness

tables = st.integers(1, 60).flatmap(lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1, max_size=3))


def shares(labels: list, weights: np.ndarray) -> dict:
    return {one: sum(w for label, w in zip(labels, weights, strict=True) if label == one) for one in set(labels)}


@settings(max_examples=60, deadline=None)
@given(columns=tables, most=st.floats(1, 30))
def test_weights_sum_to_one_and_none_exceeds_the_cap(columns: list[list[int]], most: float) -> None:
    weights = balanced_weights({str(k): column for k, column in enumerate(columns)}, most=most)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    assert weights.max() * len(weights) <= most * (1 + 1e-9)


def test_crossed_factors_become_uniform_to_a_millionth() -> None:
    rng = np.random.default_rng(0)
    cells = list(product(("head", "thorax", "pelvis"), ("B30f", "D45f"), (0.1, 0.25, 0.5)))
    rows = [cells[i] for i in rng.choice(len(cells), 3000, p=rng.dirichlet(np.full(len(cells), 3.0)))]
    assert set(rows) == set(cells)
    factors = {name: [row[k] for row in rows] for k, name in enumerate(("region", "kernel", "dose"))}
    weights = balanced_weights(factors)
    for labels in factors.values():
        found = shares(labels, weights)
        assert list(found.values()) == pytest.approx([1 / len(found)] * len(found), abs=1e-6)


def test_one_factor_is_inverse_frequency() -> None:
    labels = ["a"] * 70 + ["b"] * 25 + ["c"] * 5
    expected = [1 / 3 / labels.count(label) for label in labels]
    assert balanced_weights({"kernel": labels}) == pytest.approx(expected, rel=1e-9)


def test_independent_factors_multiply_their_inverse_frequencies() -> None:
    rows = [(a, b) for a, n in (("x", 3), ("y", 1)) for _ in range(n) for b in "ppppq"]
    weights = balanced_weights({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    expected = [1 / (2 * [a for a, _ in rows].count(a)) * 1 / (2 * [b for _, b in rows].count(b)) * len(rows) for a, b in rows]
    assert weights == pytest.approx(expected, rel=1e-8)


def test_even_data_stay_uniform() -> None:
    rows = list(product("abc", range(4)))
    assert balanced_weights({"a": [a for a, _ in rows], "b": [b for _, b in rows]}) == pytest.approx([1 / 12] * 12)


@settings(max_examples=20, deadline=None)
@given(columns=tables, seed=st.integers(0, 9))
def test_the_order_of_pairs_does_not_matter(columns: list[list[int]], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(columns[0]))
    factors = {str(k): column for k, column in enumerate(columns)}
    turned = {name: [column[i] for i in order] for name, column in factors.items()}
    assert balanced_weights(turned) == pytest.approx(balanced_weights(factors)[order], rel=1e-6, abs=1e-12)


def test_the_names_of_classes_do_not_matter() -> None:
    a, b = [0, 0, 1, 1, 1, 2], [0, 1, 0, 1, 1, 0]
    renamed = balanced_weights({"a": ["zyx"[i] for i in a], "b": [(i, "k") for i in b]})
    assert renamed == pytest.approx(balanced_weights({"a": a, "b": b}), rel=1e-9)


def test_where_the_cap_bites_the_rest_is_shared_evenly() -> None:
    labels = ["common"] * 990 + ["rare"] * 10
    weights = balanced_weights({"dose": labels}, most=5)
    assert shares(labels, weights) == pytest.approx({"rare": 0.05, "common": 0.95})
    assert len(set(np.round(weights * 1000, 9))) == 2


def test_contradictory_factors_are_shared_out_and_not_won_by_the_last() -> None:
    # Regions of one patient and of nine cannot be even together with the patients: 1/2 against 1/10 for the first.
    region = ["head"] * 10 + ["thorax"] * 90
    patient = [0] * 10 + [1 + i // 10 for i in range(90)]
    either = [balanced_weights(dict(items)) for items in (((("r", region)), ("p", patient)), (("p", patient), ("r", region)))]
    assert either[0] == pytest.approx(either[1], rel=1e-6)
    head = shares(region, either[0])["head"]
    # Minimum of KL(region) + KL(patient): ln(h/(1-h)) + ln(9h/(1-h)) = 0, so h/(1-h) = 1/3.
    assert head == pytest.approx(0.25, abs=1e-6)


def test_a_pair_that_only_stands_in_the_way_falls_to_nothing_without_a_warning() -> None:
    with np.errstate(all="raise", under="ignore"):
        weights = balanced_weights({"region": [1, 3, 0, 2, 2, 2, 2], "kernel": [2, 2, 2, 3, 0, 1, 2]}, most=1000)
    assert weights == pytest.approx([1 / 6] * 6 + [0], abs=1e-12)


def test_evenness_and_effective_pairs_have_their_known_values() -> None:
    assert evenness(["a", "b", "c"]) == pytest.approx(1)
    assert evenness(["a"] * 7) == 1.0
    assert evenness(["a"] * 9 + ["b"]) == pytest.approx(-(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)))
    assert evenness(["a", "b"], np.array([1.0, 0.0])) == pytest.approx(0)
    assert effective_pairs(np.full(8, 0.125)) == pytest.approx(8)
    assert effective_pairs(np.array([2.0, 1.0, 1.0])) == pytest.approx(16 / 6)


def test_the_table_says_what_the_weights_gain_and_cost() -> None:
    factors = {"region": ["thorax"] * 90 + ["head"] * 10}
    table = balance_table(factors, balanced_weights(factors))
    (row,) = table.rows
    assert (row.classes, row.evenness_before, row.rarest_before) == (2, pytest.approx(0.469, abs=1e-3), pytest.approx(0.1))
    assert (row.evenness_after, row.rarest_after) == (pytest.approx(1), pytest.approx(0.5))
    assert table.effective_pairs == pytest.approx(36)
    assert "0.469 → 1.000" in str(table) and "36 effective of 100 pairs" in str(table)


def test_a_hundred_thousand_pairs_take_seconds_at_most() -> None:
    rng = np.random.default_rng(1)
    n = 100_000
    patient = rng.integers(0, 200, n)
    factors = {
        "patient": patient.tolist(), "region": ((patient + (rng.random(n) < 0.3)) % 5).tolist(),
        "kernel": rng.choice(3, n, p=[0.8, 0.15, 0.05]).tolist(),
    }  # fmt: skip
    began = time.process_time()
    weights = balanced_weights(factors)
    assert time.process_time() - began < 4  # about 0.5 s; a slow or busy machine may take longer
    assert balance_table(factors, weights).rows[1].evenness_after > 0.999


@pytest.mark.parametrize(
    ("factors", "most"), [({}, 20), ({"a": []}, 20), ({"a": [1, 2], "b": [1]}, 20), ({"a": [1, 2]}, 0.5), ({"a": [1]}, np.nan)]
)
def test_what_cannot_be_balanced_is_refused_in_one_line(factors: dict, most: float) -> None:
    with pytest.raises(DataError) as caught:
        balanced_weights(factors, most=most)
    assert "\n" not in str(caught.value)
