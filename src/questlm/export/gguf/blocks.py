"""Integers times a step as blocks of GGUF's types, exactly.

The types divide a row into blocks of 32, 128 or 256 entries, each with float16 numbers of its own; here all blocks of a
row have the same. With q the stored code and d the step, in float16:

    type   entries  bits  an entry is
    Q1_0       128     1  d (2 q - 1), which is a = 2 and m = 1
    TQ2_0      256     2  d (q - 1)
    Q2_K       256     2  d (a q - m), a and m of 4 bits
    Q4_0        32     4  d (q - 8)
    Q4_K       256     4  d (a q - m), a and m of 6 bits
    Q5_0        32     5  d (q - 16)
    Q5_K       256     5  d (a q - m)
    Q8_0        32     8  d q, q signed

The layouts are those of ggml (ggml-common.h, ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questlm.export.integers import IntegerRows

__all__ = ["BLOCK_TYPES", "BlockType", "fitting_type"]

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockType:
    """A type of GGUF that holds integers.

    Attributes:
        entries: of a row in each block.
        bits: of a code.
        zero: the code that stands for 0, on types whose entry is d (q - zero); None on those that say a and m.
        encode: codes (blocks, entries) uint8, and what is common to all blocks of the matrix: steps (blocks, 2) as
            bytes of float16, a and m -> bytes of the blocks (blocks, size).
        largest: that m can be, where there is one.
    """

    entries: int
    bits: int
    zero: int | None
    encode: Callable[[Bytes, Bytes, int, int], Bytes]
    largest: int = 63

    def holds(self, rows: IntegerRows, columns: int) -> bool:
        """Whether it holds every integer of a grid, in rows of so many entries."""
        if columns % self.entries:
            return False
        if self.zero is None:
            return (rows.high - rows.low) // rows.stride < 2**self.bits and 0 <= -rows.low <= self.largest
        return rows.low >= -self.zero and rows.high + self.zero < 2**self.bits

    def blocks(self, rows: IntegerRows) -> Bytes:
        """The matrix as the type stores it, (out, bytes of a row); its step is rounded to float16."""
        stride, offset = (rows.stride, -rows.low) if self.zero is None else (1, self.zero)
        values = rows.values.numpy()
        codes = ((values + offset) // stride).astype(np.uint8).reshape(-1, self.entries)
        per_row = values.shape[1] // self.entries
        steps = np.repeat(rows.step.numpy().astype(np.float16), per_row, axis=0).view(np.uint8)
        return self.encode(codes, steps, stride, offset).reshape(len(values), -1)


def fitting_type(rows: IntegerRows, columns: int) -> str | None:
    """The name of the smallest type that holds all integers of a grid in rows of so many entries, or None."""
    return next((name for name, kind in BLOCK_TYPES.items() if kind.holds(rows, columns)), None)


def _interleaved(codes: Bytes, bits: int, run: int) -> Bytes:
    """Codes in bytes: each run of `run` bytes has 8 / bits runs of codes, one in each of its parts, lowest first."""
    parts = codes.reshape(len(codes), -1, 8 // bits, run)
    shifted = parts << np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    whole: Bytes = np.bitwise_or.reduce(shifted, axis=2).reshape(len(codes), -1)
    return whole


def _q1_0(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    return np.hstack((steps, np.packbits(codes, axis=1, bitorder="little")))


def _tq2_0(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    return np.hstack((_interleaved(codes, 2, 32), steps))


def _q2_k(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    scales = np.full((len(codes), 16), a | m << 4, np.uint8)
    return np.hstack((scales, _interleaved(codes, 2, 32), steps, steps))


def _q4_0(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    return np.hstack((steps, _interleaved(codes, 4, 16)))


def _q4_k(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    return np.hstack((steps, steps, _scales_of_6_bits(len(codes), a, m), _interleaved(codes, 4, 32)))


def _q5_0(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    high = np.packbits(codes >> 4, axis=1, bitorder="little")
    return np.hstack((steps, high, _interleaved(codes & np.uint8(15), 4, 16)))


def _q5_k(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    scales, high = _scales_of_6_bits(len(codes), a, m), _interleaved(codes >> np.uint8(4), 1, 32)
    return np.hstack((steps, steps, scales, high, _interleaved(codes & np.uint8(15), 4, 32)))


def _q8_0(codes: Bytes, steps: Bytes, a: int, m: int) -> Bytes:
    return np.hstack((steps, codes ^ 128))  # from an offset of 128 to two's complement


def _scales_of_6_bits(blocks: int, a: int, m: int) -> Bytes:
    """Scale a and minimum m, the same for all 8 parts of a block: 12 bytes, the last 4 parts' bits in two places."""
    first = [a | (a >> 4) << 6] * 4 + [m | (m >> 4) << 6] * 4
    one: NDArray[Any] = np.array([*first, *[(a & 15) | (m & 15) << 4] * 4], np.uint8)
    return np.tile(one, (blocks, 1))


BLOCK_TYPES = {
    "Q1_0": BlockType(128, 1, None, _q1_0, largest=1),
    "TQ2_0": BlockType(256, 2, 1, _tq2_0),
    "Q2_K": BlockType(256, 2, None, _q2_k, largest=15),
    "Q4_0": BlockType(32, 4, 8, _q4_0),
    "Q4_K": BlockType(256, 4, None, _q4_k),
    "Q5_0": BlockType(32, 5, 16, _q5_0),
    "Q5_K": BlockType(256, 5, None, _q5_k),
    "Q8_0": BlockType(32, 8, 128, _q8_0),
}
"""By name, smallest first. A row of a grid that two of them hold takes the first."""
