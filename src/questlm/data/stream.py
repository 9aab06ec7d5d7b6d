"""A sequence of token ids that is read from its files only where it is accessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questlm.errors import DataError

__all__ = ["TokenStream", "require_window"]

_CHUNK_TOKENS = 2**20


class TokenStream:
    """Several one-dimensional integer arrays (usually memory-mapped shards) seen as one sequence."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = [array for array in arrays if len(array)]
        self._ends = np.cumsum([len(array) for array in self._arrays], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return tokens `start` to `stop` (exclusive) as int64; IndexError where they do not all exist."""
        parts = list(self._parts(start, stop))
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, dtype=np.int64)

    def slice(self, start: int, stop: int) -> TokenStream:
        """Return a view of tokens `start` to `stop` (exclusive); nothing is copied."""
        return TokenStream(list(self._parts(start, stop)))

    @staticmethod
    def join(streams: Sequence[TokenStream]) -> TokenStream:
        """Return the streams one after another, as a view."""
        return TokenStream([array for stream in streams for array in stream._arrays])

    def chunks(self, size: int = _CHUNK_TOKENS) -> Iterator[NDArray[np.int64]]:
        """Yield all tokens in order, `size` at a time (the last chunk may be shorter)."""
        for start in range(0, len(self), size):
            yield self.read(start, min(start + size, len(self)))

    def _parts(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} were asked of a stream of {len(self)}")
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[index])
            begin = end - len(self._arrays[index])
            yield self._arrays[index][start - begin : min(stop, end) - begin]
            start = end
            index += 1


def require_window(stream: TokenStream, seq_len: int, name: str) -> None:
    """Raise DataError unless the split called `name` holds one window: `seq_len` inputs and the target of the last."""
    if len(stream) < seq_len + 1:
        raise DataError(
            f"the {name} split has {len(stream):,} tokens, but a window of seq_len {seq_len:,} needs {seq_len + 1:,}; "
            "use more text, another data.val_fraction or a smaller train.seq_len"
        )
