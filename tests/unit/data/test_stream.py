from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from questlm.data import TokenStream, require_window
from questlm.errors import DataError

parts = st.lists(st.lists(st.integers(0, 65_535), max_size=7), max_size=6)


def stream_of(arrays: list[list[int]]) -> TokenStream:
    return TokenStream([np.array(array, dtype=np.uint16) for array in arrays])


@given(parts, st.data())
def test_reads_and_cuts_like_one_list(arrays: list[list[int]], data: st.DataObject) -> None:
    everything = [token for array in arrays for token in array]
    start = data.draw(st.integers(0, len(everything)))
    stop = data.draw(st.integers(start, len(everything)))
    stream = stream_of(arrays)
    read = stream.read(start, stop)
    assert len(stream) == len(everything)
    assert read.dtype == np.int64
    assert read.tolist() == everything[start:stop]
    view = stream.slice(start, stop)
    assert view.read(0, len(view)).tolist() == everything[start:stop]


@given(parts, st.integers(1, 5))
def test_chunks_and_join_keep_every_token(arrays: list[list[int]], size: int) -> None:
    everything = [token for array in arrays for token in array]
    joined = TokenStream.join([stream_of([array]) for array in arrays])
    chunks = list(joined.chunks(size))
    assert [token for chunk in chunks for token in chunk.tolist()] == everything
    assert all(len(chunk) == size for chunk in chunks[:-1])


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 4), (2, 1)])
def test_refuses_tokens_that_do_not_exist(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="a stream of 3"):
        stream_of([[1, 2], [3]]).read(start, stop)


def test_require_window_states_both_numbers() -> None:
    require_window(stream_of([[1, 2, 3]]), 2, "training")
    with pytest.raises(DataError, match="the validation split has 3 tokens, but a window of seq_len 3 needs 4"):
        require_window(stream_of([[1, 2, 3]]), 3, "validation")
