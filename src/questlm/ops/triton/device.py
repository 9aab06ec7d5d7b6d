"""What the kernels share: functions that run inside a Triton program on a tile of whole rows.

A row of K numbers is cut into K / T pieces of T, and a tile (P, T) holds the pieces of R whole rows, one after the
other as they lie in memory. So a program reads its rows once, has each row's sum of squares without a second pass over
memory, and rotates all pieces by one matrix product with a (T, T) matrix of Hadamard blocks. `questlm.ops.triton.tiles`
chooses the sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import target_info

__all__ = [
    "INTERPRETED",
    "load_mask",
    "offsets_of",
    "pieces",
    "rotate",
    "rounded",
    "row_sums",
    "sigmoid",
    "write_codes",
]

# Added and taken off again, this rounds a float32 below 2^22 to the nearest whole number, ties to even.
_ROUND = tl.constexpr(12582912.0)
_TINY = tl.constexpr(1.1754943508222875e-38)
# Between these means the squares of a row are float32, and what is lost below it is too small to change the sum.
_SMALLEST_MEAN, _LARGEST_MEAN = tl.constexpr(1e-30), tl.constexpr(1e30)
# Triton's interpreter multiplies the bits of bfloat16 numbers as if they were integers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


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
def row_maxima(per_piece, NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr):
    """For each piece the largest number of all pieces of its row, (P,) -> (P,); none must be negative."""
    row = tl.arange(0, P) // NB
    return tl.max(tl.where(row[:, None] == row[None, :], per_piece[None, :], 0.0), axis=1)


@triton.jit
def row_rms(y, inside, NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr):
    """For each piece of y (P, T) the root mean square of its row, (P,); infinite or NaN for a row that is not finite.

    Squares of entries above 1e19 or below 1e-19 leave float32. Such rows are seldom, so only a tile with one pays for
    bringing them near 1 by a power of two first.
    """
    mean = row_sums(tl.sum(y * y, axis=1), NB, R, P) / (NB * T)
    rms = tl.sqrt(mean)
    far = inside & ((mean < _SMALLEST_MEAN) | (mean > _LARGEST_MEAN))
    if tl.max(far.to(tl.int32), axis=0) > 0:
        largest = row_maxima(tl.max(tl.abs(y), axis=1), NB, R, P)
        exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 1), 253)
        unit = (exponent << 23).to(tl.float32, bitcast=True)
        scaled = y * ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
        near = tl.sqrt(row_sums(tl.sum(scaled * scaled, axis=1), NB, R, P) / (NB * T)) * unit
        rms = tl.where(far, near, rms)
    return rms


@triton.jit
def product(a, b):
    """a (P, T) times b (T, N), both of values exact in bfloat16, summed in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))


@triton.jit
def rotate(x, matrix, EXACT: tl.constexpr):
    """x (P, T) float32 times `matrix` (T, T) bfloat16 of +-1 and 0, in float32.

    EXACT says that x holds bfloat16 values, which one product takes as they are. Otherwise x is the sum of three
    bfloat16 numbers, 24 bits in all, and takes three products, each exact before it is summed in float32.
    """
    if INTERPRETED:
        return tl.dot(x, matrix.to(tl.float32), input_precision="ieee")
    high = x.to(tl.bfloat16)
    total = tl.dot(high, matrix)
    if not EXACT:
        rest = x - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        total = tl.dot(middle, matrix, acc=total)
        total = tl.dot((rest - middle.to(tl.float32)).to(tl.bfloat16), matrix, acc=total)
    return total


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), within a few units of float32's last place on NVIDIA GPUs."""
    if INTERPRETED or not target_info.is_cuda():
        return 1.0 / (1.0 + tl.exp(-x))
    # Triton guards exponential and division against the ends of float32's range, which costs more than all the rest;
    # here those ends give 0 and 1, as they should.
    power = tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -1.4426950408889634], dtype=tl.float32, is_pure=True, pack=1
    )
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def rounded(x):
    """float32 rounded to bfloat16 and back."""
    if INTERPRETED or not target_info.is_cuda():
        return x.to(tl.bfloat16).to(tl.float32)
    # Two at a time: Triton's own conversion does one, at a sixteenth of the rate.
    pair = tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.bfloat16, is_pure=True, pack=2
    )
    return pair.to(tl.float32)


@triton.jit
def levels_of(steps, LEVELS: tl.constexpr):
    """Nearest level to each entry in steps, (P, T): -(LEVELS - 1) / 2 ... (LEVELS - 1) / 2, one apart."""
    half: tl.constexpr = 0.5 if LEVELS % 2 == 0 else 0.0
    largest: tl.constexpr = (LEVELS - 1) / 2
    return ((tl.minimum(tl.maximum(steps, -largest), largest) + half) + _ROUND) - _ROUND - half


@triton.jit
def write_codes(
    y, factor, step_per_rms, bound, data_ptr, step_ptr, mask_ptr, index, inside,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    LEVELS: tl.constexpr, CODE_DTYPE: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Round pieces y (P, T), times `factor`, to a grid in proportion to each row's rms; write codes, steps, mask bits.

    The rms is taken here, of the rotated pieces, as it is that of the row: so nothing before the rotation has to be
    there in two layouts. `questlm.ops.Operand` says what codes mean in each CODE_DTYPE.
    """
    rms = row_rms(y, inside, NB, R, P, T) * factor
    step = step_per_rms * rms
    steps = y * (factor / tl.maximum(step, _TINY))[:, None]
    level = levels_of(steps, LEVELS)
    if CODE_DTYPE == "float8":  # a level is itself a value of float8
        data = level.to(tl.float8e4nv)
    elif CODE_DTYPE == "int8":  # whole numbers half below the levels
        data = (level - 0.5).to(tl.int8)
    else:
        data = (level + (LEVELS - 1) / 2).to(tl.uint8)
    tl.store(data_ptr + offsets_of(index, T), data, mask=inside[:, None])
    tl.store(step_ptr + index // NB, step, mask=inside & (index % NB == 0))
    if HAS_MASK:
        _store_mask(tl.abs(steps) <= bound, mask_ptr, index, inside, P, T)


@triton.jit
def _store_mask(near, mask_ptr, index, inside, P: tl.constexpr, T: tl.constexpr):
    """Write truth values (P, T) as bits, eight neighbours to a byte, lowest first.

    In large tiles by a product with the powers of two, which leaves sums across threads to the tensor cores; in small
    ones, whose product would need its factor in another layout, by shifting and adding.
    """
    columns = tl.arange(0, 16)
    if P < 64:
        bits = tl.reshape(near.to(tl.int32), (P, T // 8, 8)) << tl.arange(0, 8)[None, None, :]
        tl.store(mask_ptr + offsets_of(index, T // 8), tl.sum(bits, axis=2).to(tl.uint8), mask=inside[:, None])
    else:
        entry = tl.arange(0, T)[:, None]
        for part in tl.static_range(0, T // 8, 16):
            powers = tl.where(entry // 8 == part + columns[None, :], (1 << (entry % 8)).to(tl.float32), 0.0)
            at = index.to(tl.int64)[:, None] * (T // 8) + part + columns[None, :]
            within = inside[:, None] & (part + columns < T // 8)[None, :]
            tl.store(mask_ptr + at, product(tl.where(near, 1.0, 0.0), powers).to(tl.uint8), mask=within)


@triton.jit
def load_mask(mask_ptr, index, inside, P: tl.constexpr, T: tl.constexpr):
    """The mask bits that `write_codes` wrote, as a tile (P, T) of 0.0 and 1.0."""
    packed = tl.load(mask_ptr + offsets_of(index, T // 8), mask=inside[:, None], other=0).to(tl.int32)
    bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (P, T)).to(tl.float32)
