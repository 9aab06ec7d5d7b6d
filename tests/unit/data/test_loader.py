from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from questlm.data import TokenStream, WindowLoader, windows
from questlm.data.loader import batch_count
from questlm.errors import ConfigError, DataError

tokens_and_length = st.integers(1, 6).flatmap(lambda length: st.tuples(st.integers(length + 1, 60), st.just(length)))


def counting(tokens: int) -> TokenStream:
    """A stream in which each token is its own position."""
    return TokenStream([np.arange(tokens, dtype=np.uint16)])


@given(tokens_and_length, st.integers(1, 9), st.integers(0, 2**63 - 1))
def test_every_window_once_per_epoch(shape: tuple[int, int], batch_size: int, seed: int) -> None:
    tokens, length = shape
    count = (tokens - 1) // length
    loader = WindowLoader(counting(tokens), length, batch_size, seed)
    rows: list[list[int]] = []
    for _ in range(-(-3 * count // batch_size)):
        inputs, targets = loader.next_batch()
        assert inputs.shape == targets.shape == (batch_size, length)
        assert inputs.dtype == targets.dtype == np.int64
        np.testing.assert_array_equal(targets, inputs + 1)
        rows += inputs.tolist()
    expected = [list(range(i * length, (i + 1) * length)) for i in range(count)]
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == expected


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = [WindowLoader(counting(301), 3, 100, seed) for seed in (1, 1, 2)]
    first, again, other = (loader.next_batch()[0][:, 0].tolist() for loader in orders)
    assert first == again != other
    assert orders[0].next_batch()[0][:, 0].tolist() != first


@given(tokens_and_length, st.integers(1, 9), st.integers(0, 12), st.integers(1, 12))
def test_resume_equals_uninterrupted(shape: tuple[int, int], batch_size: int, before: int, after: int) -> None:
    tokens, length = shape
    loader = WindowLoader(counting(tokens), length, batch_size, seed=7)
    for _ in range(before):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = WindowLoader(counting(tokens), length, batch_size, seed=7)
    resumed.load_state_dict(state)
    for _ in range(after):
        np.testing.assert_array_equal(loader.next_batch(), resumed.next_batch())


def test_ranks_share_each_batch() -> None:
    whole = WindowLoader(counting(100), 4, 6, seed=3)
    ranks = [WindowLoader(counting(100), 4, 6, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(9):
        shares = [loader.next_batch()[0] for loader in ranks]
        np.testing.assert_array_equal(np.concatenate(shares), whole.next_batch()[0])
    assert ranks[0].state_dict() == ranks[2].state_dict() == whole.state_dict()
    with pytest.raises(ConfigError, match=r"train\.batch_size 6 is not a multiple of the 4 processes"):
        WindowLoader(counting(100), 4, 6, seed=3, world_size=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "for seed 4, but this run has 3"),
        ({"windows": 5}, "for windows 5, but this run has 24"),
        ({"seq_len": None}, "for seq_len None, but this run has 4"),
        ({"position": 24}, "window 24"),
        ({"position": -1}, "window -1"),
        ({"epoch": "1"}, "epoch '1'"),
    ],
)
def test_refuses_a_position_in_other_data(change: dict[str, Any], message: str) -> None:
    loader = WindowLoader(counting(100), 4, 6, seed=3)
    with pytest.raises(DataError, match=message):
        loader.load_state_dict(loader.state_dict() | change)


def test_too_short_a_stream() -> None:
    with pytest.raises(DataError, match="training split has 4 tokens"):
        WindowLoader(counting(4), 4, 1, seed=0)


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 5))
def test_windows_predict_every_token_once(tokens: int, length: int, batch_size: int) -> None:
    batches = list(windows(counting(tokens), length, batch_size))
    predicted = [token for _, targets in batches for token in targets.reshape(-1).tolist()]
    assert predicted == list(range(1, tokens))
    for inputs, targets in batches:
        np.testing.assert_array_equal(targets, inputs + 1)
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] == length or (inputs is batches[-1][0] and inputs.shape[0] == 1)


@pytest.mark.parametrize(("max_tokens", "whole"), [(1, 1), (10, 1), (25, 2), (1000, 9)])
def test_windows_up_to_a_number_of_tokens(max_tokens: int, whole: int) -> None:
    batches = list(windows(counting(99), 10, 4, max_tokens))
    assert np.concatenate([inputs for inputs, _ in batches]).reshape(-1).tolist() == list(range(whole * 10))


@given(st.integers(2, 150), st.none() | st.integers(1, 150), st.integers(1, 6))
def test_every_target_comes_to_one_process(tokens: int, max_tokens: int | None, processes: int) -> None:
    stream = TokenStream([np.arange(tokens, dtype=np.uint16)])
    alone = list(windows(stream, 8, 2, max_tokens))
    shares = [list(windows(stream, 8, 2, max_tokens, rank, processes)) for rank in range(processes)]
    assert batch_count(stream, 8, 2, max_tokens) == len(alone) == sum(map(len, shares))
    dealt = [target for share in shares for _, targets in share for target in targets.flatten().tolist()]
    assert sorted(dealt) == sorted(target for _, targets in alone for target in targets.flatten().tolist())
    assert len(set(dealt)) == len(dealt)
    assert max(map(len, shares)) == -(-len(alone) // processes)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
