"""1-bit weights around the mean of the tensor."""

from __future__ import annotations

from torch import Tensor

from questlm import ops
from questlm.ops import Grid, Operand
from questlm.quant.quantizers.base import Quantizer, StraightThrough

__all__ = ["CenteredSignQuantizer"]


class CenteredSignQuantizer(Quantizer):
    """Quantises W to g sign(W - mean(W)) with g = mean|W| of the tensor.

    Straight-through gradient. BitNet's weights.
    """

    grid: Grid

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.block_size = grid, 1

    def operand(self, x: Tensor) -> Operand:
        x = x.detach()
        unit = ops.power_of_two(x.reshape(1, -1))  # sums of large entries leave float32
        step, center = 2 * (x / unit).abs().mean() * unit, ((x / unit).mean() * unit).to(x.dtype)
        codes, step, _ = ops.quantize(x, self.grid, 1, None, step, center)
        return Operand(codes, self.grid, step)

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        result: Tensor = StraightThrough.apply(x, ops.operand_values(operand))
        return result
