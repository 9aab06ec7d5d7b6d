"""Quantisers whose step sizes are computed from the rows, with a gradient that passes or not by distance."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from questlm import ops
from questlm.ops import Grid, Operand
from questlm.quant.quantizers.base import MaskedRounding, Quantizer, StraightThrough

__all__ = ["DynamicQuantizer", "MaskedQuantizer"]


class _Masked(torch.autograd.Function):
    """x_q in the rotated domain; backward IHT(M * gradient). Saves the mask bits and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, block_size: int, mask_bound: float | None) -> Tensor:
        quantized = ops.quantize(x, grid, block_size, mask_bound)
        ctx.save_for_backward(quantized.mask)
        ctx.block_size = block_size
        values = ops.dequantize(quantized.codes, quantized.step, grid)
        return ops.as_dtype(values, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        dx = ops.masked_hadamard(gradients[0], mask, ctx.block_size)
        return ops.as_dtype(dx, gradients[0].dtype), None, None, None


class DynamicQuantizer(Quantizer):
    """Computes the step size from each row; the gradient is 1 or 0 by distance.

    For subclasses with an `operand` (codes) or `values` (gradient) of their own, which layers call as they are.

    Args:
        mask_bound: gradients pass where |x_h| <= mask_bound * step; None: everywhere.
    """

    grid: Grid

    def __init__(self, grid: Grid, block_size: int, mask_bound: float | None) -> None:
        super().__init__()
        self.grid, self.block_size, self.mask_bound = grid, block_size, mask_bound

    def operand(self, x: Tensor) -> Operand:
        codes, step, _ = ops.quantize(x.detach(), self.grid, self.block_size)
        return Operand(codes, self.grid, step)

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        result: Tensor
        if self.mask_bound is None:
            result = StraightThrough.apply(ops.hadamard(x, self.block_size), ops.operand_values(operand))
        else:
            result = _Masked.apply(x, self.grid, self.block_size, self.mask_bound)
        return result


@final
class MaskedQuantizer(DynamicQuantizer):
    """A `DynamicQuantizer` as it is, so that layers may use fused kernels. QuEST, STE, QuaRot and BitNet use it."""

    @property
    def rounding(self) -> MaskedRounding:
        return MaskedRounding(self.grid, self.block_size, self.mask_bound)

    def set_rounding(self, rounding: MaskedRounding) -> None:
        assert rounding.block_size == self.block_size
        self.grid, self.mask_bound = rounding.grid, rounding.mask_bound
