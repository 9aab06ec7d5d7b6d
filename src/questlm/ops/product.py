"""The product of two encoded factors, on the unit that multiplies their codes.

Which that is, the form of the codes says, and that `questlm.ops.encode` has chosen: float8 levels go to the GPU's
float8 product, int8 codes to a kernel, all others are multiplied as levels in the dtype of the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.reference import matmul as _reference
from questlm.ops.reference.matmul import Operand

__all__ = ["scaled_matmul"]


def scaled_matmul(x: Operand, w: Operand, dtype: torch.dtype) -> Tensor:
    """y = x_q w_q^T from codes, steps and offsets: (tokens, K) and (out, K) -> (tokens, out) of `dtype`."""
    if x.step is not None and w.step is not None and dtype is torch.bfloat16:
        kind = x.data.dtype if x.data.dtype is w.data.dtype else None
        if kind is torch.float8_e4m3fn and x.data.is_cuda and not x.data.shape[1] % 16 and not len(w.data) % 16:
            # Fast accumulation is no further from the exact product than its rounding to bf16 (bench_kernels.py).
            return torch._scaled_mm(x.data, w.data.T, x.step, w.step.T, out_dtype=dtype, use_fast_accum=True)
        if kind is torch.int8:
            return _int8_product(x, w, x.step, w.step, dtype)
    return _reference.scaled_matmul(x, w, dtype)


def _int8_product(x: Operand, w: Operand, x_step: Tensor, w_step: Tensor, dtype: torch.dtype) -> Tensor:
    from questlm.ops.triton import operators as triton

    sums = (operand.data.sum(-1, dtype=torch.int32) for operand in (x, w))
    y: Tensor = triton.int8_matmul(x.data, w.data, x_step, w_step, *sums, dtype)
    return y
