"""The product of two matrices of int8 codes, with what makes values of them: for grids of 5 to 8 bits.

A level is half above its code, so of rows a, b of K codes with steps s, t the product is

    s t sum (a_k + 1/2)(b_k + 1/2) = s t (a . b + (sum a_k + sum b_k) / 2 + K / 4):

a . b is exact in int32, the sums come with the operands, and the rest happens where the product is still in registers,
so that it leaves as 16-bit numbers and not as int32. Floor: 2 M N K operations at the int8 rate of the tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.device import INTERPRETED
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.tiles import FUSED

__all__ = ["int8_matmul"]

_ROWS, _COLUMNS, _DEPTH, _GROUP = 128, 128, 128, 8


@triton.jit(do_not_specialize=["rows"])
def _int8_matmul(
    a_ptr, b_ptr, a_step_ptr, b_step_ptr, a_sum_ptr, b_sum_ptr, y_ptr, rows, columns, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # Tiles in groups of GROUP rows of tiles, so that programs that run together share what they read.
    across = tl.cdiv(columns, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    height = tl.minimum(tl.cdiv(rows, ROWS) - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    row = (group * GROUP + within % height) * ROWS + tl.arange(0, ROWS)
    column = within // height * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, column_inside = row < rows, column < columns
    # What lies outside is read from the last row or column, which costs no comparison in the loop.
    a_offsets = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * k
    b_offsets = tl.minimum(column, columns - 1).to(tl.int64)[None, :] * k
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for start in range(0, k, DEPTH):
        left = start + depth
        a = tl.load(a_ptr + a_offsets + left[None, :], mask=(left < k)[None, :], other=0)
        b = tl.load(b_ptr + b_offsets + left[:, None], mask=(left < k)[:, None], other=0)
        if INTERPRETED:  # whose product of int8 is int8
            total += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee").to(tl.int32)
        else:
            total = tl.dot(a, b, acc=total, out_dtype=tl.int32)
    a_sum = tl.load(a_sum_ptr + row, mask=row_inside, other=0)
    b_sum = tl.load(b_sum_ptr + column, mask=column_inside, other=0)
    halves = (a_sum[:, None] + b_sum[None, :]).to(tl.float32) * 0.5 + k * 0.25
    a_step = tl.load(a_step_ptr + row, mask=row_inside, other=0.0)
    b_step = tl.load(b_step_ptr + column, mask=column_inside, other=0.0)
    y = (total.to(tl.float32) + halves) * a_step[:, None] * b_step[None, :]
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])


def int8_matmul(
    a: Tensor, b: Tensor, a_step: Tensor, b_step: Tensor, a_sum: Tensor, b_sum: Tensor, dtype: torch.dtype
) -> Tensor:
    """(rows, columns) of `dtype` from codes (rows, K) and (columns, K) int8, steps (rows, 1), (columns, 1) float32.

    Args:
        a_sum, b_sum: sums of each row's codes, (rows,) and (columns,) int32.
    """
    a, b = a.contiguous(), b.contiguous()
    (rows, k), columns = a.shape, len(b)
    y = a.new_empty((rows, columns), dtype=dtype)
    if rows and columns:
        start_kernel(
            _int8_matmul, (triton.cdiv(rows, _ROWS) * triton.cdiv(columns, _COLUMNS),),
            a, b, a_step.contiguous(), b_step.contiguous(), a_sum, b_sum, y, rows, columns, k,
            _ROWS, _COLUMNS, _DEPTH, _GROUP, num_warps=4, num_stages=3, **FUSED,
        )  # fmt: skip
    return y
