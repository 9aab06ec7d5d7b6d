"""A few rows to the codes that `questlm.ops.triton.decode` multiplies, one program a row.

As `questlm.ops.triton.quantize`, which is made for thousands of rows; here also the sum of each row's codes, and codes
as bits. Whatever comes before the quantisation in a Llama is part of it: the sum with the residual stream and the norm,
SwiGLU, or the parts that attention leaves. With LEVELS 0 the rows are written as they are before quantisation.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from questlm.ops.triton.device import levels_of, offsets_of, rotate, rounded, row_rms, row_sums, sigmoid

__all__ = ["encode_rows"]

_TINY = tl.constexpr(1.1754943508222875e-38)
_LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def _joined(part_ptr, largest_ptr, sum_ptr, row, own, inside, HEADS: tl.constexpr, WIDTH: tl.constexpr,
            SPLITS: tl.constexpr, P: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """The values of attention (P, T) from the parts of `decode_attention`."""
    head = ((own * T) // WIDTH)[:, None] if WIDTH % T == 0 else offsets_of(own, T).to(tl.int32) // WIDTH
    known = inside[:, None]
    largest = tl.full(head.shape, _LOWEST, tl.float32)
    for split in tl.static_range(SPLITS):
        at = (row * SPLITS + split) * HEADS + head
        largest = tl.maximum(largest, tl.load(largest_ptr + at, mask=known, other=_LOWEST))
    total = tl.zeros(head.shape, tl.float32)
    y = tl.zeros((P, T), tl.float32)
    for split in tl.static_range(SPLITS):
        at = (row * SPLITS + split) * HEADS + head
        share = tl.exp(tl.load(largest_ptr + at, mask=known, other=_LOWEST) - largest)
        total += tl.load(sum_ptr + at, mask=known, other=0.0) * share
        part = part_ptr + (row * SPLITS + split).to(tl.int64) * (HEADS * WIDTH) + offsets_of(own, T)
        y += tl.load(part, mask=known, other=0.0) * share
    return y / tl.where(known, total, 1.0)


@triton.jit
def _store_planes(codes_ptr, code, row, own, inside, PLANES: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr,
                  T: tl.constexpr):  # fmt: skip
    """Write the bits of codes (P, T) >= 0 as words of 32 entries: all of bit 0 first, then of bit 1, and so on."""
    bits = tl.reshape(code, (P, T // 32, 32))
    for plane in tl.static_range(PLANES):
        words = tl.sum(((bits >> plane) & 1) << tl.arange(0, 32)[None, None, :], axis=2)
        to = codes_ptr + (row.to(tl.int64) * PLANES + plane) * WIDTH + offsets_of(own, T // 32)
        tl.store(to, words, mask=inside[:, None])


@triton.jit
def encode_rows(
    x_ptr, other_ptr, gain_ptr, matrix_ptr, residual_ptr, codes_ptr, step_ptr, sum_ptr, x_row, eps, step_per_rms,
    factor,
    NB: tl.constexpr, P: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, WIDTH: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, BEFORE: tl.constexpr, HAS_DELTA: tl.constexpr, PLANES: tl.constexpr,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, SPLITS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Codes of row program_id(0): int8 bytes, WIDTH a row, or for PLANES > 0 bits, WIDTH words a plane.

    BEFORE: 'norm', 'swiglu', 'attention' or 'nothing'. `other_ptr` is what a norm's row is added to, what SwiGLU
    multiplies, or the largest scores of attention, whose sums are at `gain_ptr`. Rows of x, and of what SwiGLU
    multiplies, lie `x_row` entries apart.
    """
    row = tl.program_id(0)
    own = tl.arange(0, P)
    inside = own < NB
    entries = tl.arange(0, T)
    if ROTATES:
        h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    if BEFORE == "norm":
        gain = tl.load(gain_ptr + offsets_of(own, T), mask=inside[:, None], other=0.0).to(tl.float32)
    if OVERLAPS:  # what is read above was there before
        gdc_launch_dependents()
        gdc_wait()
    at = row.to(tl.int64) * x_row + offsets_of(own, T)
    if BEFORE == "attention":
        y = _joined(x_ptr, other_ptr, gain_ptr, row, own, inside, HEADS, HEAD_WIDTH, SPLITS, P, T)
    else:
        y = tl.load(x_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    if BEFORE == "norm":
        if HAS_DELTA:
            y += tl.load(other_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
            residual = y.to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + at, residual, mask=inside[:, None])
            y = residual.to(tl.float32)
        y = y * (1.0 / tl.sqrt(row_sums(tl.sum(y * y, axis=1), NB, 1, P) / (NB * T) + eps))[:, None] * gain
    elif BEFORE == "swiglu":
        y = y * sigmoid(y) * tl.load(other_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    if EXACT:
        y = rounded(y)
    if LEVELS == 0:
        tl.store(codes_ptr + row.to(tl.int64) * WIDTH + offsets_of(own, T), y.to(codes_ptr.dtype.element_ty),
                 mask=inside[:, None])  # fmt: skip
    else:
        if ROTATES:
            y = rotate(y, h, EXACT)
        step = step_per_rms * (row_rms(y, inside, NB, 1, P, T) * factor)
        level = levels_of(y * (factor / tl.maximum(step, _TINY))[:, None], LEVELS)
        half: tl.constexpr = 0.5 if LEVELS % 2 == 0 else 0.0
        code = (level - half).to(tl.int32)
        first = own == 0
        tl.store(step_ptr + row + own, step, mask=first)
        total = tl.sum(tl.sum(tl.where(inside[:, None], code, 0), axis=1), axis=0)
        tl.store(sum_ptr + row + own, total + tl.zeros_like(own), mask=first)
        if PLANES == 0:
            to = codes_ptr + row.to(tl.int64) * WIDTH + offsets_of(own, T)
            tl.store(to, code.to(tl.int8), mask=inside[:, None])
        else:
            _store_planes(codes_ptr, code + LEVELS // 2, row, own, inside, PLANES, WIDTH, P, T)
