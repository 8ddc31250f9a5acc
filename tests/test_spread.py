"""Which of many are looked at."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from finegrain.spread import spread


@given(st.integers(0, 300), st.integers(2, 40))
def test_items_come_in_order_none_twice_ends_included_and_evenly(n, most):
    chosen = spread(range(n), most)
    assert len(chosen) == min(n, most)
    assert chosen == sorted(set(chosen))
    if n > 1:
        gaps = [after - before for before, after in pairwise(chosen)]
        assert (chosen[0], chosen[-1]) == (0, n - 1)
        assert max(gaps) - min(gaps) <= 1


def test_one_of_many_is_the_first():
    assert spread("abc", 1) == ["a"]
