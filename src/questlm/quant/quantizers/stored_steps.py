"""A quantiser whose steps are kept in fewer bits than float32."""

from __future__ import annotations

from torch import Tensor

from questlm import ops
from questlm.grid import Steps
from questlm.ops import Operand
from questlm.ops.reference.storage import round_steps
from questlm.quant.quantizers.base import Quantizer, StraightThrough

__all__ = ["StoredStepsQuantizer"]


class StoredStepsQuantizer(Quantizer):
    """Gives the codes of another quantiser of a weight, with steps rounded to those that `steps` can hold.

    So training computes with the steps that are shipped. The gradient is that of the other quantiser. It has no
    `rounding`, because kernels that quantise in one pass do not round steps.
    """

    def __init__(self, inner: Quantizer, steps: Steps) -> None:
        super().__init__()
        self.inner, self.steps = inner, steps
        self.grid, self.block_size, self.setting = inner.grid, inner.block_size, inner.setting
        self.starts_from_data = inner.starts_from_data

    def operand(self, x: Tensor) -> Operand:
        operand = self.inner.operand(x)
        assert operand.step is not None  # a quantiser without a grid has no steps to keep
        return operand._replace(step=round_steps(operand.step, self.steps))

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        values: Tensor = StraightThrough.apply(self.inner.values(x, self.inner.operand(x)), ops.operand_values(operand))
        return values

    def step_per_scale(self) -> Tensor | None:
        return self.inner.step_per_scale()

    def offset(self) -> Tensor | None:
        return self.inner.offset()

    def needs_data(self) -> bool:
        return self.inner.needs_data()
