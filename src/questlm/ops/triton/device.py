"""What the kernels share: functions that run inside a Triton program on a tile of whole rows.

A row of K numbers is cut into K / T pieces of T, and a tile (P, T) holds the pieces of R whole rows, one after the other
as they lie in memory. So a program reads its rows once, has each row's sum of squares without a second pass over memory,
and rotates all pieces by one matrix product with a (T, T) matrix of Hadamard blocks. `questlm.ops.triton.tiles` chooses
the sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["levels_of", "load_mask", "offsets_of", "pieces", "rotate", "row_sums", "store_codes", "store_mask"]

# Added and taken off again, this rounds a float32 below 2^22 to the nearest whole number, ties to even.
_ROUND = tl.constexpr(12582912.0)
_TINY = tl.constexpr(1.1754943508222875e-38)
# Triton's interpreter multiplies the bits of bfloat16 numbers as if they were integers.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def pieces(tile, rows, NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr):
    """Number of each piece of a tile, counted from the first row, and whether it is one: (P,) each."""
    own = tl.arange(0, P)
    index = tile * (R * NB) + own
    return index, (own < R * NB) & (index < rows * NB)


@triton.jit
def offsets_of(index, T: tl.constexpr):
    """Where the entries of pieces lie in a contiguous matrix, (P, T)."""
    return index.to(tl.int64)[:, None] * T + tl.arange(0, T)[None, :]


@triton.jit
def row_sums(per_piece, NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr):
    """For each piece the sum over all pieces of its row, (P,) -> (P,). Pieces that are none must hold 0."""
    if R == 1:
        return tl.sum(per_piece, axis=0) + tl.zeros_like(per_piece)
    row = tl.arange(0, P) // NB
    return tl.sum(tl.where(row[:, None] == row[None, :], per_piece[None, :], 0.0), axis=1)


@triton.jit
def rotate(x, matrix, factor, EXACT: tl.constexpr):
    """x (P, T) float32 times `matrix` (T, T) bfloat16 of +-1 and 0, times `factor`, in float32.

    EXACT says that x holds bfloat16 values, which one product takes as they are. Otherwise x is the sum of three
    bfloat16 numbers, 24 bits in all, and takes three products, each exact before it is summed in float32.
    """
    if _INTERPRETED:
        return tl.dot(x, matrix.to(tl.float32), input_precision="ieee") * factor
    high = x.to(tl.bfloat16)
    total = tl.dot(high, matrix)
    if not EXACT:
        rest = x - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        total = tl.dot(middle, matrix, acc=total)
        total = tl.dot((rest - middle.to(tl.float32)).to(tl.bfloat16), matrix, acc=total)
    return total * factor


@triton.jit
def levels_of(y, step, LEVELS: tl.constexpr):
    """Nearest level of each entry of y (P, T), in steps (P,): -(LEVELS - 1) / 2 ... (LEVELS - 1) / 2, one apart."""
    half: tl.constexpr = 0.5 if LEVELS % 2 == 0 else 0.0
    largest: tl.constexpr = (LEVELS - 1) / 2
    steps = y / tl.maximum(step, _TINY)[:, None]
    steps = tl.minimum(tl.maximum(steps, -largest - 1.0), largest + 1.0)
    nearest = ((steps + half) + _ROUND) - _ROUND - half
    return tl.minimum(tl.maximum(nearest, -largest), largest)


@triton.jit
def store_codes(level, data_ptr, offsets, inside, LEVELS: tl.constexpr, FORM: tl.constexpr):
    """Write levels in the form asked for: `questlm.ops.Operand` says what each means."""
    if FORM == "float8":  # a level is itself a value of float8
        data = level.to(tl.float8e4nv)
    elif FORM == "int8":  # whole numbers half below the levels
        data = (level - 0.5).to(tl.int8)
    else:
        data = (level + (LEVELS - 1) / 2).to(tl.uint8)
    tl.store(data_ptr + offsets, data, mask=inside[:, None])


@triton.jit
def store_mask(near, mask_ptr, index, inside, P: tl.constexpr, T: tl.constexpr):
    """Write a tile of truth values as bits, lowest first."""
    bits = tl.reshape(near.to(tl.int32), (P, T // 8, 8)) << tl.arange(0, 8)[None, None, :]
    tl.store(mask_ptr + offsets_of(index, T // 8), tl.sum(bits, axis=2).to(tl.uint8), mask=inside[:, None])


@triton.jit
def load_mask(mask_ptr, index, inside, P: tl.constexpr, T: tl.constexpr):
    """The bits that `store_mask` wrote, as a tile of 0.0 and 1.0."""
    packed = tl.load(mask_ptr + offsets_of(index, T // 8), mask=inside[:, None], other=0).to(tl.int32)
    bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (P, T)).to(tl.float32)
