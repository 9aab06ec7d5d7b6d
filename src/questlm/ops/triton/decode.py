"""Products of packed weights with a few rows of codes: what generating text needs.

Each weight is read once, as words of `questlm.ops.triton.words`, expanded in registers and multiplied there: four codes
by `dp4a`, or 32 bits by `popc`. All sums are int32. A program takes COLUMNS rows of the weight, which are columns of
the result, and all tokens; where it has several warps, they share the words of a row.

Floor: the bytes of the weight over the bandwidth of memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import target_info
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from questlm.ops.triton.device import INTERPRETED

__all__ = ["decode_bits", "decode_bytes"]


@triton.jit
def dot4(weights, inputs, total):
    """total + sum over the four signed bytes of a word of `weights` times those of `inputs`."""
    if INTERPRETED or not target_info.is_cuda():
        for byte in tl.static_range(4):
            total += ((weights << (24 - 8 * byte)) >> 24) * ((inputs << (24 - 8 * byte)) >> 24)
    else:
        total = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [weights, inputs, total], dtype=tl.int32, is_pure=True, pack=1
        )
    return total


@triton.jit
def prefetch(at):
    """Bring what pointers lead to into the L2 cache, without waiting for it."""
    if not INTERPRETED and target_info.is_cuda():
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at.to(tl.int64, bitcast=True)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def bit_count(word):
    """Bits of each int32 that are set."""
    if INTERPRETED or not target_info.is_cuda():
        word = word - ((word >> 1) & 0x55555555)
        word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
        word = (word + (word >> 4)) & 0x0F0F0F0F
        return ((word * 0x01010101) >> 24) & 255
    return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [word], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _sum_of_bytes(
    w_ptr, x_ptr, column, inside, token, tokens, x_width,
    BITS: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr, WAITS: tl.constexpr,
):  # fmt: skip
    """Sums of products of codes, int32 (tokens, columns, WORDS), not yet added up over the words."""
    offset = tl.arange(0, WORDS)
    total = tl.zeros((token.shape[0], column.shape[0], WORDS), dtype=tl.int32)
    for start in tl.static_range(0, WIDTH, WORDS):
        word = start + offset
        rows = w_ptr + column.to(tl.int64)[:, None] * WIDTH + word[None, :]
        if WIDTH % WORDS == 0:
            w = tl.load(rows, mask=inside[:, None], other=0)
        else:
            w = tl.load(rows, mask=inside[:, None] & (word < WIDTH)[None, :], other=0)
        if WAITS and start == 0:  # the weight is there before the kernel that writes the input ends
            for later in tl.static_range(WORDS, WIDTH, WORDS):
                line = later + tl.arange(0, WORDS // 32) * 32
                prefetch(w_ptr + column.to(tl.int64)[:, None] * WIDTH + tl.minimum(line, WIDTH - 1)[None, :])
            gdc_wait()
        w = w[None, :, :]
        for plane in tl.static_range(8 // BITS):
            at = x_ptr + token[:, None, None] * x_width + plane * WIDTH + word[None, None, :]
            within = (token < tokens)[:, None, None]
            if WIDTH % WORDS != 0:
                within = within & (word < WIDTH)[None, None, :]
            x = tl.load(at, mask=within, other=0)
            codes = w if BITS == 8 else (w >> (BITS * plane)) & ((2**BITS - 1) * 0x01010101)
            wide, x = tl.broadcast(codes, x)
            total = dot4(wide, x, total)
    return total


@triton.jit(do_not_specialize=["tokens"])
def decode_bytes(
    w_ptr, high_ptr, x_ptr, w_step_ptr, w_term_ptr, x_step_ptr, x_sum_ptr, bias_ptr, y_ptr, tokens, columns, x_width,
    BITS: tl.constexpr, WIDTH: tl.constexpr, HIGH_WIDTH: tl.constexpr, LARGEST: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, WORDS: tl.constexpr, HAS_BIAS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """y (tokens, columns) from words of weights and int8 input codes, as words of four, `x_width` words a token.

    BITS: of a code in `w_ptr`; WIDTH: words of its rows; HIGH_WIDTH: words of rows of high bits, 0 where there are no
    such rows.
    """
    if OVERLAPS:
        gdc_launch_dependents()
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.arange(0, TOKENS)
    inside = column < columns
    parts = _sum_of_bytes(w_ptr, x_ptr, column, inside, token, tokens, x_width, BITS, WIDTH, WORDS, OVERLAPS)
    if HIGH_WIDTH > 0:
        parts += 4 * _sum_of_bytes(high_ptr, x_ptr, column, inside, token, tokens, x_width, 1, HIGH_WIDTH, WORDS, False)
    _finish(
        tl.sum(parts, axis=2), column, inside, token, tokens, columns,
        w_step_ptr, w_term_ptr, x_step_ptr, x_sum_ptr, bias_ptr, y_ptr, LARGEST, HAS_BIAS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def decode_bits(
    w_ptr, x_ptr, w_step_ptr, w_term_ptr, x_step_ptr, x_sum_ptr, bias_ptr, y_ptr, tokens, columns,
    PLANES: tl.constexpr, WIDTH: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, WORDS: tl.constexpr, HAS_BIAS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """y (tokens, columns) from one-bit weights and input codes as PLANES bits: words (tokens, PLANES, WIDTH)."""
    if OVERLAPS:
        gdc_launch_dependents()
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.arange(0, TOKENS)
    inside = column < columns
    offset = tl.arange(0, WORDS)
    total = tl.zeros((TOKENS, COLUMNS, WORDS), dtype=tl.int32)
    for start in tl.static_range(0, WIDTH, WORDS):
        word = start + offset
        rows = w_ptr + column.to(tl.int64)[:, None] * WIDTH + word[None, :]
        if WIDTH % WORDS == 0:
            w = tl.load(rows, mask=inside[:, None], other=0)
        else:
            w = tl.load(rows, mask=inside[:, None] & (word < WIDTH)[None, :], other=0)
        if OVERLAPS and start == 0:
            gdc_wait()
        w = w[None, :, :]
        for plane in tl.static_range(PLANES):
            at = x_ptr + token[:, None, None] * (PLANES * WIDTH) + plane * WIDTH + word[None, None, :]
            within = (token < tokens)[:, None, None]
            if WIDTH % WORDS != 0:
                within = within & (word < WIDTH)[None, None, :]
            x = tl.load(at, mask=within, other=0)
            total += bit_count(w & x) << plane
    _finish(
        tl.sum(total, axis=2), column, inside, token, tokens, columns,
        w_step_ptr, w_term_ptr, x_step_ptr, x_sum_ptr, bias_ptr, y_ptr, 1, HAS_BIAS,
    )  # fmt: skip


@triton.jit
def _finish(
    total, column, inside, token, tokens, columns, w_step_ptr, w_term_ptr, x_step_ptr, x_sum_ptr, bias_ptr, y_ptr,
    LARGEST: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write y (tokens, columns) from sums of products of codes. LARGEST is Z of `questlm.ops.triton.words`."""
    here = token < tokens
    x_sum = tl.load(x_sum_ptr + token, mask=here, other=0)
    x_step = tl.load(x_step_ptr + token, mask=here, other=0.0)
    w_term = tl.load(w_term_ptr + column, mask=inside, other=0.0)
    w_step = tl.load(w_step_ptr + column, mask=inside, other=0.0)
    level = (2 * total - LARGEST * x_sum[:, None]).to(tl.float32) * 0.5 + w_term[None, :]
    y = level * x_step[:, None] * w_step[None, :]
    if HAS_BIAS:
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)
        y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = token.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=here[:, None] & inside[None, :])
