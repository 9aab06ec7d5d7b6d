"""Windows of a token stream: shuffled and resumable for training, in order for validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questlm.data.stream import TokenStream, require_window
from questlm.errors import ConfigError, DataError, quoted

__all__ = ["Batch", "WindowLoader", "batch_count", "windows"]

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Inputs and targets, each (sequences, tokens); the target of a position is the token after it."""


class WindowLoader:
    """Yields endless batches of windows of `seq_len` tokens, each window once an epoch, in an order drawn from `seed`.

    Window i has the inputs `stream[i*L : i*L + L]`; its targets are shifted by one. A batch may begin in one epoch and
    end in the next. `batch_size` counts the windows of all ranks: rank r of `world_size` gets the r-th equal share of
    each batch.

    Raises:
        DataError: the stream is shorter than one window.
        ConfigError: `world_size` does not divide `batch_size`.
    """

    def __init__(
        self, stream: TokenStream, seq_len: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        require_window(stream, seq_len, "training")
        if batch_size % world_size:
            raise ConfigError(f"train.batch_size {batch_size} is not a multiple of the {world_size} processes")
        self._stream = stream
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._seed = seed
        self._windows = (len(stream) - 1) // seq_len
        self._start_epoch(0)

    def next_batch(self) -> Batch:
        """Return inputs and targets, int64, each (batch_size / world_size, seq_len)."""
        numbers = self._take(self._batch_size)[self._share]
        length = self._seq_len
        return _batch([self._stream.read(n * length, n * length + length + 1) for n in numbers])

    def state_dict(self) -> dict[str, int]:
        """Return the position of the loader, the same on every rank, and the hash of its data, as JSON."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the loader that returned `state` stood.

        Raises:
            DataError: that loader read other data.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise DataError(
                    f"the saved position is for {name} {quoted(state.get(name))}, but this run has {mine}; "
                    "resume with the settings and the data of the saved run"
                )
        epoch, position = state.get("epoch"), state.get("position")
        if not (isinstance(epoch, int) and epoch >= 0 and isinstance(position, int) and 0 <= position < self._windows):
            raise DataError(
                f"the saved position (epoch {quoted(epoch)}, window {quoted(position)}) is none of this data's"
            )
        self._start_epoch(epoch)
        self._position = position

    def _identity(self) -> dict[str, int]:
        return {"seed": self._seed, "windows": self._windows, "seq_len": self._seq_len}

    def _start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._position = 0
        self._order = np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(self._windows)

    def _take(self, count: int) -> list[int]:
        numbers: list[int] = []
        while len(numbers) < count:
            stop = self._position + count - len(numbers)
            numbers += self._order[self._position : stop].tolist()
            self._position = min(stop, self._windows)
            if self._position == self._windows:
                self._start_epoch(self._epoch + 1)
        return numbers


def windows(
    stream: TokenStream,
    seq_len: int,
    batch_size: int,
    max_tokens: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield batches that predict every token but the first exactly once, in order.

    Each batch is (up to `batch_size`, seq_len); the remaining tokens come last, as (1, rest). With `max_tokens`, only
    the complete windows among the first `max_tokens` predictions come, but at least one. Rank r of `world_size` gets
    every `world_size`-th batch, beginning with the r-th.
    """
    whole, rest = _split(stream, seq_len, max_tokens)
    starts = range(0, whole, batch_size)
    for start in starts[rank::world_size]:
        numbers = range(start, min(start + batch_size, whole))
        yield _batch([stream.read(n * seq_len, n * seq_len + seq_len + 1) for n in numbers])
    if rest and len(starts) % world_size == rank:
        yield _batch([stream.read(whole * seq_len, len(stream))])


def batch_count(stream: TokenStream, seq_len: int, batch_size: int, max_tokens: int | None = None) -> int:
    """Return the number of batches that `windows` yields to all ranks together."""
    whole, rest = _split(stream, seq_len, max_tokens)
    return -(-whole // batch_size) + rest


def _split(stream: TokenStream, seq_len: int, max_tokens: int | None) -> tuple[int, bool]:
    """Return the number of complete windows to validate on, and whether tokens remain after them."""
    predictions = max(len(stream) - 1, 0)
    whole = predictions // seq_len
    if max_tokens is not None:
        return min(whole, max(1, max_tokens // seq_len)), False
    return whole, whole * seq_len < predictions


def _batch(rows: list[NDArray[np.int64]]) -> Batch:
    tokens = np.stack(rows)
    return tokens[:, :-1], tokens[:, 1:]
