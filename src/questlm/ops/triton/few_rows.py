"""Products of packed weights with more rows than `questlm.ops.triton.decode` takes well, on the tensor cores.

The weight is expanded to bytes in registers, a plane at a time, and multiplied with int8 codes into int32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import target_info
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from questlm.ops.triton.decode import _finish
from questlm.ops.triton.device import INTERPRETED

__all__ = ["dot_bytes", "dot_values"]


@triton.jit
def field(packed, PLANE: tl.constexpr, BITS: tl.constexpr):
    """Codes of one plane, int8, of bytes: their bits BITS * PLANE and up."""
    if BITS == 8:
        code = packed.to(tl.int8, bitcast=True)
    elif INTERPRETED or not target_info.is_cuda():
        code = ((packed.to(tl.int32) >> (BITS * PLANE)) & (2**BITS - 1)).to(tl.int8)
    else:
        code = tl.inline_asm_elementwise(
            f"shr.b32 $0, $1, {BITS * PLANE}; and.b32 $0, $0, {(2**BITS - 1) * 0x01010101};",
            "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4,
        )  # fmt: skip
    return code


@triton.jit(do_not_specialize=["tokens"])
def dot_bytes(
    w_ptr, x_ptr, w_step_ptr, w_term_ptr, x_step_ptr, x_sum_ptr, bias_ptr, y_ptr, tokens, columns,
    BITS: tl.constexpr, BYTES: tl.constexpr, X_BYTES: tl.constexpr, LARGEST: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WEIGHT_FIRST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """y (tokens, columns) from bytes of weights, BYTES a row, and int8 input codes, X_BYTES a token."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside = column < columns
    depth = tl.arange(0, DEPTH)
    w_row = w_ptr + tl.minimum(column, columns - 1).to(tl.int64)[:, None] * BYTES
    x_row = x_ptr + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * X_BYTES
    total = tl.zeros((COLUMNS if WEIGHT_FIRST else TOKENS, TOKENS if WEIGHT_FIRST else COLUMNS), dtype=tl.int32)
    for start in range(0, BYTES, DEPTH):
        left = start + depth
        if BYTES % DEPTH == 0:
            w = tl.load(w_row + left[None, :])
        else:
            w = tl.load(w_row + left[None, :], mask=(left < BYTES)[None, :], other=0)
        for plane in tl.static_range(8 // BITS):
            if BYTES % DEPTH == 0:
                x = tl.load(x_row + plane * BYTES + left[None, :])
            else:
                x = tl.load(x_row + plane * BYTES + left[None, :], mask=(left < BYTES)[None, :], other=0)
            code = field(w, plane, BITS)
            if INTERPRETED:  # whose product of int8 is int8
                a, b = (code, x) if WEIGHT_FIRST else (x, code)
                total += tl.dot(a.to(tl.float32), tl.trans(b).to(tl.float32), input_precision="ieee").to(tl.int32)
            elif WEIGHT_FIRST:
                total = tl.dot(code, tl.trans(x), acc=total, out_dtype=tl.int32)
            else:
                total = tl.dot(x, tl.trans(code), acc=total, out_dtype=tl.int32)
    if WEIGHT_FIRST:
        total = tl.trans(total)
    _finish(
        total, column, inside, token, tokens, columns,
        w_step_ptr, w_term_ptr, x_step_ptr, x_sum_ptr, bias_ptr, y_ptr, LARGEST, HAS_BIAS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def dot_values(
    w_ptr, x_ptr, w_step_ptr, bias_ptr, y_ptr, tokens, columns, k, x_row,
    BITS: tl.constexpr, BYTES: tl.constexpr, ZERO: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """y (tokens, columns) from bytes of weights, BYTES a row, and inputs that are not rounded, (tokens, k).

    A code c is worth c - ZERO steps, which is exact in the dtype of x. Bytes of one code are signed.
    """
    if OVERLAPS:
        gdc_launch_dependents()
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside, here = column < columns, token < tokens
    depth = tl.arange(0, DEPTH)
    w_row = w_ptr + tl.minimum(column, columns - 1).to(tl.int64)[:, None] * BYTES
    x_at = x_ptr + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * x_row
    total = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    if OVERLAPS:
        gdc_wait()
    for start in range(0, BYTES, DEPTH):
        left = start + depth
        if BYTES % DEPTH == 0:
            w = tl.load(w_row + left[None, :])
        else:
            w = tl.load(w_row + left[None, :], mask=(left < BYTES)[None, :], other=0)
        for plane in tl.static_range(8 // BITS):
            entry = plane * BYTES + left
            x = tl.load(x_at + entry[None, :], mask=((left < BYTES) & (entry < k))[None, :], other=0.0)
            value = field(w, plane, BITS).to(tl.float32) - ZERO
            if INTERPRETED:
                total += tl.dot(x.to(tl.float32), tl.trans(value), input_precision="ieee")
            else:
                total = tl.dot(x, tl.trans(value.to(x.dtype)), acc=total, input_precision="ieee")
    y = total * tl.load(w_step_ptr + column, mask=inside, other=0.0)[None, :]
    if HAS_BIAS:
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)
        y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = token.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=here[:, None] & inside[None, :])
