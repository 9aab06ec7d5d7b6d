"""Native entropy coding of symbols, and decoding; rans.c says how, and `questlm.artifact.rans` is the reference."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from questlm.ops.cpu import native

__all__ = ["decode", "encode"]

_REFUSALS = {
    2: "coded symbols name a table, or a number of lanes, that cannot be; they are damaged",
    3: "a table of frequencies does not add up; it is damaged",
    4: "coded symbols have a number of bytes that states and words cannot have; they are damaged",
    5: "coded symbols end too early; they are damaged",
    6: "coded symbols do not end as they began; they are damaged",
}
"""Sentences for the results of rans.c."""


def decode(
    stream: bytes,
    tables: NDArray[np.uint16],
    row_tables: NDArray[np.int32] | None,
    column_tables: NDArray[np.int32] | None,
    lanes: int,
    shape: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the symbols (rows, columns) of a stream.

    Args:
        stream: the states of the lanes, and the words.
        tables: (tables, levels) frequencies.
        row_tables, column_tables: (rows,) and (columns,), whose sum is the table of a symbol; None: zeros.
        lanes: a power of two, at most 256.
        shape: (rows, columns).

    Raises:
        ValueError: a table does not add up, or the stream is damaged.
    """
    symbols = torch.empty(shape, dtype=torch.uint8)
    own = torch.from_numpy(np.array(tables, np.uint16))  # in this machine's byte order
    failed = native.rans_decode(stream, own, _tensor(row_tables), _tensor(column_tables), lanes, symbols)
    if failed == 1:
        raise MemoryError(f"no memory for {len(tables)} tables of frequencies")
    if failed:
        raise ValueError(_REFUSALS[failed])
    return symbols.numpy()


def encode(
    symbols: NDArray[np.uint8],
    tables: NDArray[np.uint16],
    row_tables: NDArray[np.int32] | None,
    column_tables: NDArray[np.int32] | None,
    lanes: int,
) -> bytes:
    """Return the stream of symbols (rows, columns), as the reference codes them; other arguments as of `decode`.

    Raises:
        ValueError: a symbol without a frequency in its table, or a table that does not add up.
    """
    stream = torch.empty(4 * lanes + 2 * symbols.size, dtype=torch.uint8)
    data = torch.from_numpy(np.array(symbols, np.uint8, order="C"))
    own = torch.from_numpy(np.array(tables, np.uint16))
    size = native.rans_encode(data, own, _tensor(row_tables), _tensor(column_tables), lanes, stream)
    if size == -1:
        raise MemoryError(f"no memory for {len(tables)} tables of frequencies")
    if size < 0:
        raise ValueError(f"symbols cannot be coded: {_REFUSALS[-size]}")
    return stream[:size].numpy().tobytes()


def _tensor(tables: NDArray[np.int32] | None) -> Tensor | None:
    return None if tables is None else torch.from_numpy(np.ascontiguousarray(tables, np.int32))
