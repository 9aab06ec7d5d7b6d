"""Entropy coding of small integers by interleaved range ANS, in integers alone.

Each symbol s has an integer frequency f[s], and the frequencies of a table add up to 2^14; c[s] is the sum of those
before s. A coder's state is an integer x below 2^32. Coding s takes x to

    x' = floor(x / f) 2^14 + x mod f + c        and decoding takes it back:   x = f floor(x' / 2^14) + x' mod 2^14 - c,

where s is the symbol in whose range x' mod 2^14 falls. Before a step that would leave 32 bits the encoder writes the
lowest 16 bits of x as a word, and the decoder reads them back where x falls below 2^16. A symbol thus costs
14 - log2 f bits, up to rounding of x (Duda, arXiv 1311.2540).

So that NumPy does many steps at once, `lanes` states take turns: symbol i belongs to lane i mod lanes (Giesen,
arXiv 1402.3392). A lane starts from the state 2^16, which costs 2 bytes, and a decoder must end there, which finds
damage. No number here depends on a machine: there are no floats and no division of what is decoded.

A library would be better kept than this, but `constriction` 0.5 has no wheel for Linux on ARM, and its tables are made
inside it from floats, so that the meaning of a file would depend on its version.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRECISION", "decode", "encode", "table_of_counts"]

PRECISION = 14
"""log2 of what the frequencies of a table add up to."""

_TOTAL = 1 << PRECISION
_LOWEST = 1 << 16  # of a state between two symbols
_SHIFT, _HALF, _MASK = np.uint32(PRECISION), np.uint32(16), np.uint32(_TOTAL - 1)

Symbols = NDArray[np.uint8]
Table = NDArray[np.uint16]


def table_of_counts(counts: NDArray[np.int64]) -> Table:
    """Return frequencies in proportion to counts, each at least 1 where a symbol occurs: (..., levels) -> the same.

    Args:
        counts: of each symbol, at most 2^14 symbols; a table without any symbol gets one of the first alone.
    """
    own = counts.astype(np.int64).reshape(-1, counts.shape[-1])
    own[~own.any(axis=1), 0] = 1
    scaled = np.maximum(own * _TOTAL // own.sum(axis=1, keepdims=True), own > 0)
    excess = scaled.sum(axis=1) - _TOTAL
    largest = scaled.argmax(axis=1)
    short = excess < 0  # what rounding left goes to the largest, where it costs least
    scaled[short, largest[short]] -= excess[short]
    for table in np.flatnonzero(excess > 0):
        row = scaled[table]
        while (over := int(row.sum()) - _TOTAL) > 0:
            place = int(row.argmax())
            row[place] -= min(over, int(row[place]) // 2)
    return scaled.reshape(counts.shape).astype(np.uint16)


def encode(symbols: Symbols, tables: Table, classes: NDArray[np.integer] | None, lanes: int) -> bytes:
    """Return the coded symbols: the lanes' last states, 4 bytes each, and then the words, 2 bytes each, lowest first.

    Args:
        symbols: (n,), each with a frequency above 0 in its table.
        tables: (classes, levels) from `table_of_counts`.
        classes: (n,) which table each symbol is coded by; None: all by the first.
        lanes: number of states.
    """
    frequency = tables.astype(np.uint32)
    before = np.cumsum(frequency, axis=1, dtype=np.uint32) - frequency
    row = np.zeros(len(symbols), np.int64) if classes is None else classes.astype(np.int64)
    flat = row * tables.shape[1] + symbols
    frequency, before = frequency.ravel(), before.ravel()
    state, words = np.full(lanes, _LOWEST, np.uint32), []
    for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        chosen = flat[start : start + lanes]
        f, x = frequency[chosen], state[: len(chosen)]
        full = (x >> np.uint32(32 - PRECISION)) >= f
        words.append(x[full].astype("<u2"))
        x = np.where(full, x >> _HALF, x)
        quotient = x // f
        state[: len(chosen)] = (quotient << _SHIFT) + (x - quotient * f) + before[chosen]
    return state.astype("<u4").tobytes() + b"".join(word.tobytes() for word in reversed(words))


def decode(stream: bytes, tables: Table, classes: NDArray[np.integer] | None, lanes: int, count: int) -> Symbols:
    """Return the `count` symbols of a stream that `encode` wrote; the other arguments are those of `encode`.

    Raises:
        ValueError: a table does not add up, or the stream is damaged.
    """
    if (tables.sum(axis=1, dtype=np.int64) != _TOTAL).any():
        raise ValueError("a table of frequencies does not add up; it is damaged")
    if len(stream) < 4 * lanes or len(stream) % 2:
        raise ValueError(f"coded symbols have {len(stream)} bytes, which {lanes} states and words cannot have")
    frequency, symbol, offset = _by_slot(tables)
    state = np.frombuffer(stream, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(stream, "<u2", offset=4 * lanes).astype(np.uint32)
    base = None if classes is None else classes.astype(np.uint32) << _SHIFT
    steps, position = -(-count // lanes), 0
    slots = np.zeros((steps, lanes), np.uint16 if base is None else np.uint32)
    for step in range(steps):
        x = state[: count - step * lanes]
        slot = x & _MASK
        if base is not None:
            slot += base[step * lanes : (step + 1) * lanes]
        slots[step, : len(slot)] = slot
        x >>= _SHIFT
        x *= frequency[slot]
        x += offset[slot]
        low = (x < _LOWEST).nonzero()[0]
        read = words[position : position + len(low)]
        if len(read) < len(low):
            raise ValueError("coded symbols end too early; they are damaged")
        x[low] = (x[low] << _HALF) | read
        position += len(low)
    if position != len(words) or (state != _LOWEST).any():
        raise ValueError("coded symbols do not end as they began; they are damaged")
    return symbol[slots].reshape(-1)[:count]


def _by_slot(tables: Table) -> tuple[NDArray[np.uint32], Symbols, NDArray[np.uint32]]:
    """Frequency, symbol, and slot less c, of each slot of each table, (classes * 2^14,)."""
    classes, levels = tables.shape
    frequency = tables.astype(np.uint32)
    before = np.cumsum(frequency, axis=1, dtype=np.uint32) - frequency
    index = np.repeat(np.arange(tables.size), tables.ravel())
    slot = np.tile(np.arange(_TOTAL, dtype=np.uint32), classes)
    return frequency.ravel()[index], (index % levels).astype(np.uint8), slot - before.ravel()[index]
