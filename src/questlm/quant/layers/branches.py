"""Feed-forward layers of two branches: most of the width in few bits, a narrow branch in 8 (pQuant, arXiv 2602.22592).

If the hidden channels of a SwiGLU are split into a wide and a narrow branch, its output is the sum of those of the two,
and each can be quantised differently. Each branch owns some rows of gate and up, and the same columns of down. So a
layer is split along its output (gate, up) or its input (down), and the rest of the model does not change. Each branch's
output is multiplied by a learned scale, which packing multiplies into the step sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.config import QuantSpec
from questlm.grid import LayerFormat, Narrow
from questlm.ops import Operand
from questlm.quant.layer_formats import narrow_width
from questlm.quant.layers.linear import FakeQuantLinear
from questlm.quant.methods import narrow_quantizer
from questlm.quant.quantizers import LearningQuantizer, Quantizer

__all__ = ["BranchedLinear", "ScaledQuantizer"]

Axis = Literal["rows", "columns"]


class ScaledQuantizer(LearningQuantizer):
    """Multiplies the values of another quantiser by a learned scale, which starts at 1."""

    def __init__(self, inner: Quantizer) -> None:
        super().__init__()
        self.inner, self.grid, self.block_size, self.setting = inner, inner.grid, inner.block_size, inner.setting
        self.output_scale = nn.Parameter(torch.ones(1, 1))

    def operand(self, x: Tensor) -> Operand:
        operand = self.inner.operand(x)
        assert operand.step is not None  # both branches have grids
        return operand._replace(step=operand.step * self.output_scale.detach().abs())

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        return self.inner.values(x, self.inner.operand(x)) * self.output_scale.abs()


class BranchedLinear(FakeQuantLinear):
    """A FakeQuantLinear whose last rows or columns have 8 bits, with a learned output scale for each branch.

    Attributes:
        axis: 'rows' (gate, up) or 'columns' (down).
        narrow: the number of rows or columns in the 8-bit branch.
        weight_quantizer, narrow_quantizer: quantisers of the weights of the wide and of the 8-bit branch.
    """

    axis: Axis
    narrow: int
    weight_quantizer: ScaledQuantizer
    narrow_quantizer: ScaledQuantizer

    @classmethod
    def split(cls, linear: nn.Linear, spec: QuantSpec, axis: Axis) -> BranchedLinear:
        """Wrap `linear`, sharing its parameters.

        Raises:
            ConfigError: as `from_linear`; also for a layer too small to split.
        """
        narrow = narrow_width(linear.out_features if axis == "rows" else linear.in_features)
        layer = cls.from_linear(linear, spec)
        assert isinstance(layer, cls)
        layer.axis, layer.narrow = axis, narrow
        inner = narrow_quantizer(spec.method, linear.out_features, linear.in_features)
        wide: Quantizer = layer.weight_quantizer
        layer.weight_quantizer, layer.narrow_quantizer = ScaledQuantizer(wide), ScaledQuantizer(inner)
        for quantizer in (layer.weight_quantizer, layer.narrow_quantizer):
            quantizer.to(device=linear.weight.device, dtype=linear.weight.dtype)
        return layer

    @property
    def rounds_weight(self) -> bool:
        """False: each branch has a learned output scale."""
        return False

    @property
    def takes_rows(self) -> bool:
        """False: the branches quantise their inputs apart."""
        return False

    def quantized_branches(self) -> tuple[Operand, Operand]:
        """Return codes and step sizes of the wide and of the 8-bit branch, output scales included; no gradient."""
        wide, narrow = self._weights()
        with torch.no_grad():
            return self.weight_quantizer.operand(wide), self.narrow_quantizer.operand(narrow)

    def quantized_weight(self) -> Operand:
        """Return codes and step sizes of the wide branch."""
        return self.quantized_branches()[0]

    def packed_format(self) -> LayerFormat:
        """As of the wide branch, with the narrow one beside it."""
        grid = self.narrow_quantizer.grid
        assert grid is not None  # the narrow branch is codes
        return replace(super().packed_format(), narrow=Narrow(self.axis, self.narrow, grid))

    def quantized_narrow_branch(self) -> Operand:
        """Return codes and step sizes of the 8-bit branch."""
        return self.quantized_branches()[1]

    def rounded_weight(self) -> Tensor:
        """Return Q(W), (out, in), before the output scales; no gradient."""
        with torch.no_grad():
            inner = (self.weight_quantizer.inner, self.narrow_quantizer.inner)
            values = [ops.operand_values(q.operand(w)) for q, w in zip(inner, self._weights(), strict=True)]
        return torch.cat(values, dim=0 if self.axis == "rows" else 1).to(self.weight.dtype)

    def _weights(self) -> tuple[Tensor, Tensor]:
        dim = 0 if self.axis == "rows" else 1
        wide, narrow = self.weight.split([self.weight.shape[dim] - self.narrow, self.narrow], dim=dim)
        return wide, narrow

    def _product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        wide, narrow = self._weights()
        widths = [self.in_features - self.narrow, self.narrow]
        parts = (x, x) if self.axis == "rows" else x.split(widths, dim=1)
        a = self._quantized_product(parts[0], wide, self.weight_quantizer, dtype)
        b = self._quantized_product(parts[1], narrow, self.narrow_quantizer, dtype)
        return torch.cat((a, b), dim=1) if self.axis == "rows" else a + b
