from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from questlm.data.holdout import choose_documents, tail_start
from questlm.errors import DataError

fractions = st.floats(0.001, 0.999)


@given(st.lists(st.integers(1, 50), max_size=80), fractions)
def test_chosen_documents_make_up_the_fraction(lengths: list[int], fraction: float) -> None:
    array = np.array(lengths, dtype=np.int64)
    total = int(array.sum())
    chosen = choose_documents(array, total, fraction)
    if chosen is not None:
        held = int(array[chosen].sum())
        assert fraction * total <= held <= 2 * fraction * total
        assert held < total
        np.testing.assert_array_equal(chosen, choose_documents(array, total, fraction))


def test_documents_of_ordinary_size_are_found_and_scattered() -> None:
    chosen = choose_documents(np.full(1000, 7), 7000, 0.02)
    assert chosen is not None
    places = np.flatnonzero(chosen)
    assert len(places) == 20
    assert places[0] < 300 < 700 < places[-1]


@pytest.mark.parametrize("lengths", [[], [100], [50, 50], [1, 99]])
def test_no_choice_where_documents_are_too_large(lengths: list[int]) -> None:
    assert choose_documents(np.array(lengths, dtype=np.int64), 100, 0.02) is None


@given(st.integers(2, 10_000), fractions)
def test_tail_leaves_something_on_both_sides(total: int, fraction: float) -> None:
    start = tail_start(total, fraction)
    assert 1 <= start <= total - 1
    assert abs((total - start) - fraction * total) <= 1


def test_nothing_can_be_held_out_of_one_token() -> None:
    with pytest.raises(DataError, match="the corpus has 1 tokens"):
        tail_start(1, 0.5)
