"""The likeliest token and the check for finite logits, native and in PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from questlm import ops

NUMBERS = st.floats(width=32, allow_nan=False)


@given(st.lists(NUMBERS, min_size=1, max_size=90), st.integers(1, 3))
def test_argmax_is_the_first_of_the_largest(row: list[float], rows: int) -> None:
    x = torch.tensor([row[i:] + row[:i] for i in range(rows)])
    assert ops.argmax(x).tolist() == [numbers.index(max(numbers)) for numbers in x.tolist()]
    with ops.using_backend("reference"):
        assert x.gather(1, ops.argmax(x)[:, None])[:, 0].tolist() == x.amax(-1).tolist()


@given(st.lists(NUMBERS, min_size=1, max_size=90))
def test_finite_numbers_are_told_from_others(row: list[float]) -> None:
    x = torch.tensor(row)
    assert ops.all_finite(x[None]) == bool(torch.isfinite(x).all())


@pytest.mark.parametrize("place", [0, 15, 63, 64, 70])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(place: int, number: float) -> None:
    x = torch.full((2, 71), 3e38)
    assert ops.all_finite(x)
    x[1, place] = number
    assert not ops.all_finite(x)
    assert 0 <= int(ops.argmax(x)[1]) < 71


def test_other_dtypes_are_left_to_pytorch() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.bfloat16)
    assert ops.argmax(x).tolist() == [1] and ops.all_finite(x)
