"""The product of two quantised matrices, from their codes.

Codes are multiplied as multiples of the step (half-integers, exact in bf16) and each row's step is applied to the
result. In float32 the inner products are then exact whatever the order of summation, as long as
(levels - 1)^2 K < 2^24: always, for up to 4 bits and K <= 74,000. So every backend gives the same forward pass.

Grids with an offset (AdaBin, LSQ+) keep that property: with rows a = s_x l_x + o_x and b = s_w l_w + o_w

    a . b = s_x s_w (l_x . l_w) + s_x sum(l_x) o_w + o_x s_w sum(l_w) + K o_x o_w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from questlm.grid import Grid
from questlm.ops.precision import as_dtype, without_autocast
from questlm.ops.reference.quantize import levels

__all__ = ["Operand", "factor", "operand_gradient", "operand_values", "scaled_matmul"]


class Operand(NamedTuple):
    """A factor of a product: rows of codes, or of plain values.

    Attributes:
        data: (rows, K): uint8 codes of `grid`; or, where `grid` is None, numbers that are multiplied as they are:
            rotated values, levels in float8, or levels less one half in int8 (with half a step as offset).
        grid: what codes mean, or None.
        step: (rows, 1), what each row's levels are multiplied by; None: 1.
        offset: (rows, 1) or (1, 1), added to each entry of a row; None: 0.
    """

    data: Tensor
    grid: Grid | None = None
    step: Tensor | None = None
    offset: Tensor | None = None


def scaled_matmul(x: Operand, w: Operand, dtype: torch.dtype) -> Tensor:
    """y = x_q w_q^T: (tokens, K) and (out, K) -> (tokens, out).

    Args:
        dtype: what the product is computed in, and the dtype of the result.
    """
    with without_autocast(x.data):
        a, b = factor(x.data, x.grid, dtype), factor(w.data, w.grid, dtype)
        y = a @ b.T
    if x.step is not None:
        y = y * x.step
    if w.step is not None:
        y = y * w.step.T
    if w.offset is not None:
        y = y + _row_sums(a, x.step) * w.offset.T
    if x.offset is not None:
        y = y + x.offset * _row_sums(b, w.step).T
    if x.offset is not None and w.offset is not None:
        y = y + a.shape[-1] * x.offset * w.offset.T
    return as_dtype(y, dtype)


def operand_gradient(dy: Tensor, other: Operand, dtype: torch.dtype, out: torch.dtype | None = None) -> Tensor:
    """dy b of the other factor's values b: (rows, out) and (out, K) -> (rows, K), computed in `dtype`.

    The gradient of x_q w_q^T with respect to x_q is dy w_q, and with respect to w_q it is dy^T x_q.

    Args:
        out: dtype of the result; None: `dtype`.
    """
    a, b, out = dy.to(dtype), operand_values(other).to(dtype), out or dtype
    with without_autocast(dy):
        if out is torch.float32 and dtype is torch.bfloat16 and dy.is_cuda:  # sums leave the product unrounded
            return torch.mm(a, b, out_dtype=out)
        product = a @ b
    return as_dtype(product, out)


def operand_values(operand: Operand) -> Tensor:
    """The numbers that an operand stands for: (rows, K), of the step's dtype."""
    if operand.grid is not None:
        values = levels(operand.data, operand.grid, _step(operand).dtype)
    else:
        values = operand.data if operand.step is None else operand.data.to(operand.step.dtype)
    if operand.step is not None:
        values = values * operand.step
    return values if operand.offset is None else values + operand.offset


def factor(matrix: Tensor, grid: Grid | None, dtype: torch.dtype) -> Tensor:
    """A factor of the product without its row steps: levels of codes, or the values themselves."""
    return matrix.to(dtype) if grid is None else levels(matrix, grid, dtype)


def _step(operand: Operand) -> Tensor:
    if operand.step is None:
        raise ValueError("codes need a step")
    return operand.step


def _row_sums(levels_: Tensor, step: Tensor | None) -> Tensor:
    sums = levels_.sum(-1, keepdim=True, dtype=torch.promote_types(levels_.dtype, torch.float32))
    return sums if step is None else sums * step
