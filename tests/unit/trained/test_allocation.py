"""Bytes are shared out within the limit, and nearly as well as by trying everything."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from questlm.trained.allocation import Option, allocate, total_bytes

OPTIONS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=4)


def loss_of(chosen) -> float:
    return sum(option.loss for option in chosen)


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(0, 200))
def test_the_choice_fits_and_no_single_change_is_better(sizes: list[list[tuple[int, int]]], limit: int) -> None:
    matrices = {str(i): [Option(pair, *pair) for pair in pairs] for i, pairs in enumerate(sizes)}
    chosen = allocate(matrices, limit)
    fitting = [combo for combo in product(*matrices.values()) if sum(option.bytes for option in combo) <= limit]
    assert (chosen is None) == (not fitting)
    if chosen is None:
        return
    assert total_bytes(chosen) <= limit
    assert all(chosen[name] in options for name, options in matrices.items())
    for name, options in matrices.items():
        left = limit - total_bytes(chosen) + chosen[name].bytes
        assert not any(option.bytes <= left and option.loss < chosen[name].loss for option in options)
    if limit >= sum(max(option.bytes for option in options) for options in matrices.values()):
        assert loss_of(chosen.values()) == min(map(loss_of, fitting))


def test_bytes_go_where_they_save_most() -> None:
    steep = [Option(bits, bits * 100.0, 8.0 / bits) for bits in (1, 2, 4)]
    flat = [Option(bits, bits * 100.0, 0.1 / bits) for bits in (1, 2, 4)]
    chosen = allocate({"steep": steep, "flat": flat}, 500.0)
    assert chosen is not None
    assert (chosen["steep"].choice, chosen["flat"].choice) == (4, 1)
