"""The product of two encoded factors, and its gradients, on the unit that multiplies them.

`questlm.ops.dispatch` chooses it, above all by the dtype of the codes: float8 levels go to the GPU's float8 product,
int8 codes to a kernel, all others are multiplied as levels in the dtype of the product. Gradients are products of
values in 16 bits, and may be ones of float8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.dispatch import choose
from questlm.ops.precision import without_autocast
from questlm.ops.reference import matmul as _reference
from questlm.ops.reference.matmul import Operand, operand_values

__all__ = ["operand_gradient", "scaled_matmul"]

_FLOAT8 = torch.float8_e4m3fn


def scaled_matmul(x: Operand, w: Operand, dtype: torch.dtype) -> Tensor:
    """y = x_q w_q^T from codes, steps and offsets: (tokens, K) and (out, K) -> (tokens, out) of `dtype`."""
    chosen = choose("scaled_matmul", x, w, dtype)
    if chosen == "float8":
        assert x.step is not None and w.step is not None
        # Fast accumulation is no further from the exact product than its rounding to bf16 (bench_kernels.py).
        return torch._scaled_mm(x.data, w.data.T, x.step, w.step.T, out_dtype=dtype, use_fast_accum=True)
    if chosen == "int8":
        return _int8_product(x, w, dtype)
    return _reference.scaled_matmul(_as_levels(x, dtype), _as_levels(w, dtype), dtype)


def _as_levels(operand: Operand, dtype: torch.dtype) -> Operand:
    """int8 codes as the levels half above them, which 16-bit products take exactly; others as they are."""
    if operand.data.dtype is not torch.int8:
        return operand
    return Operand(operand.data.to(dtype) + 0.5, None, operand.step)


def operand_gradient(
    dy: Tensor, other: Operand, dtype: torch.dtype, out: torch.dtype | None = None, float8: bool = False
) -> Tensor:
    """dy b of the other factor's values b: (rows, out) and (out, K) -> (rows, K), computed in `dtype`.

    The gradient of x_q w_q^T with respect to x_q is dy w_q, and with respect to w_q it is dy^T x_q.

    Args:
        out: dtype of the result; None: `dtype`.
        float8: compute it of float8 numbers (E4M3) instead, with a scale for each row of dy and each column of b. Where
            the device has no such product, of the same numbers in `dtype`.
    """
    if not float8:
        return _reference.operand_gradient(dy, other, dtype, out)
    (a, a_scale), (b, b_scale) = _in_float8(dy), _in_float8(operand_values(other).T)
    if choose("float8_gradient", a, b, dtype) == "float8":
        product = torch._scaled_mm(a, b.T, a_scale, b_scale.T, out_dtype=dtype, use_fast_accum=True)
    else:
        with without_autocast(dy):
            product = (a.to(dtype) @ b.to(dtype).T) * a_scale * b_scale.T
    return product.to(out or dtype)


def _in_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (rows, K) in float8 and their scales (rows, 1) float32; the largest entry of a row becomes float8's."""
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / torch.finfo(_FLOAT8).max).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scale).to(_FLOAT8).contiguous(), scale


def _int8_product(x: Operand, w: Operand, dtype: torch.dtype) -> Tensor:
    from questlm.ops.triton import operators as triton

    assert x.step is not None and w.step is not None
    sums = (operand.data.sum(-1, dtype=torch.int32) for operand in (x, w))
    y: Tensor = triton.int8_matmul(x.data, w.data, x.step, w.step, *sums, dtype)
    return y
