"""AdaBin (arXiv 2208.08084): one bit with a centre and a distance of its own,

    x_q = alpha sign((x - beta) / alpha) + beta.

A weight's row takes beta from its mean and alpha from its standard deviation, and the gradient flows through both. For
activations both are learned. Sign has no useful derivative; with u = (x - beta) / alpha it is replaced by

    weights      1 - tanh(u / 10)^2                  (IR-Net's estimator as the authors use it)
    activations  2 - 2 |u| for |u| < 1, else 0       (Bi-Real Net's)

and everything around it is differentiated exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.ops import Grid, Operand
from questlm.quant.quantizers import Quantizer
from questlm.quant.quantizers.learned import StatefulQuantizer

__all__ = ["AdaBinActivation", "AdaBinWeight"]

_SHARPNESS = 0.1


class _Sign(torch.autograd.Function):
    """Signs given by codes 0 and 1, with a surrogate derivative at u."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, codes: Tensor, smooth: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.smooth = smooth
        return 2 * codes.to(u.dtype) - 1 + 0 * u  # NaN and infinity propagate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        slope = 1 - torch.tanh(_SHARPNESS * u).square() if ctx.smooth else (2 - 2 * u.abs()).clamp_min(0)
        return gradients[0] * slope, None, None


def _values(x: Tensor, center: Tensor, distance: Tensor, codes: Tensor, smooth: bool) -> Tensor:
    # A constant row takes its centre as value; u has no meaning there but must be finite.
    sign: Tensor = _Sign.apply((x - center) / torch.where(distance > 0, distance, 1), codes, smooth)
    return distance * sign + center


class AdaBinWeight(Quantizer):
    """Rounds each row of a weight to its mean plus or minus its standard deviation; has no parameters."""

    grid: Grid

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.block_size = grid, 1

    def operand(self, x: Tensor) -> Operand:
        center, distance = _moments(x.detach())
        codes, step, _ = ops.quantize(x.detach(), self.grid, 1, None, 2 * distance, center)
        return Operand(codes, self.grid, step, center)

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        center, distance = _moments(x)
        return _values(x.to(center.dtype), center, distance, operand.data, smooth=True).to(x.dtype)


class AdaBinActivation(StatefulQuantizer):
    """Rounds all entries to beta plus or minus alpha, both learned.

    They start as the mean and the mean distance from it.
    """

    grid: Grid

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.block_size = grid, 1
        self.distance = nn.Parameter(torch.ones(1, 1))
        self.center = nn.Parameter(torch.zeros(1, 1))

    def step_per_scale(self) -> Tensor:
        return 2 * self.distance.detach().abs() * self.initialized

    def offset(self) -> Tensor:
        return self.center.detach()

    def initialize(self, x: Tensor) -> bool:
        x = x.to(self.center.dtype)
        unit = ops.power_of_two(x.reshape(1, -1))  # sums of large entries leave float32
        center = (x / unit).mean() * unit
        distance = ((x - center) / unit).abs().mean() * unit
        if not bool(distance.isfinite()) or not bool(distance > 0):
            return False
        self.center.copy_(center.view(1, 1))
        self.distance.copy_(distance.view(1, 1))
        return True

    def operand(self, x: Tensor) -> Operand:
        self.ensure_initialized(x)
        codes, step, _ = ops.quantize(x.detach(), self.grid, 1, None, self.step_per_scale(), self.offset())
        return Operand(codes, self.grid, step, self.offset())

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        exact, distance = x.to(self.center.dtype), self.distance.abs() * self.initialized
        return _values(exact, self.center, distance, operand.data, smooth=False).to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row, (rows, 1), float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    unit = ops.power_of_two(x)  # sums and squares of entries far from 1 leave float32
    center = (x / unit).mean(-1, keepdim=True) * unit
    spread = x - center
    unit = ops.power_of_two(spread)
    variance = (spread / unit).square().mean(-1, keepdim=True)
    return center, variance.clamp_min(torch.finfo(x.dtype).tiny).sqrt() * unit  # the square root has no gradient at 0
