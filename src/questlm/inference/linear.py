"""A linear layer that runs from packed codes, with the same numbers as the layer that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.artifact.format import WeightFormat
from questlm.artifact.matrices import narrow_operand, weight_operand
from questlm.ops import Operand

__all__ = ["InputNorm", "PackedBranches", "PackedLinear", "packed_layer"]


class PackedLinear(nn.Module):
    """y = x_q w_q^T of input (..., in_features), as the fake-quantised layer computes it in training.

    Computes in the autocast dtype if one is on, else in float32; float16 is computed in float32, because a product of
    codes can leave its range.

    The state is the packed weight. The first call unpacks it to multiples of the step, in the dtype computed in, and
    keeps them beside it: 4 bytes a weight (2 in bfloat16). PyTorch has no product for packed codes, and unpacking each
    time takes many times as long as the product for one token.

    Args:
        tensors: of this matrix by kind, as `questlm.artifact.format` lists them, without a narrow branch's.
        in_features: K, the length of a row.
        form: how they are stored and multiplied.
        narrow: whether this is the narrow branch.
    """

    _weight: Operand | None

    def __init__(
        self, tensors: Mapping[str, Tensor], in_features: int, form: WeightFormat, narrow: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.form, self.narrow = in_features, form, narrow
        self._linear = form.linear  # made once, not for each token
        own = [kind for kind in tensors if kind.startswith("narrow_") == narrow or kind.startswith("act_")]
        self._kinds = [kind for kind in own if kind != "input_norm"]
        for kind in self._kinds:
            self.register_buffer(kind, tensors[kind])
        self._weight = None

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        rounded = ops.autocast_dtype(input) or torch.float32
        dtype = ops.compute_dtype(rounded)
        with torch.autocast(input.device.type, enabled=False):
            x = self._input(input.reshape(-1, self.in_features), rounded)
            y = ops.scaled_matmul(x, self._unpacked(dtype), dtype)
        return y.reshape(*input.shape[:-1], -1)

    def _input(self, rows: Tensor, dtype: torch.dtype) -> Operand:
        block_size, grid = self._linear.block_size, self._linear.act
        if grid is None:
            return Operand(ops.hadamard(rows, block_size))
        step, offset = (getattr(self, kind) if kind in self._kinds else None for kind in ("act_step", "act_offset"))
        if step is None:
            rows = rows.to(dtype)  # as in training: see questlm.quant.layers.linear
        codes, steps, _ = ops.quantize(rows, grid, block_size, None, step, offset)
        return Operand(codes, grid, steps, offset)

    def _unpacked(self, dtype: torch.dtype) -> Operand:
        """The weight as a factor of the product, its levels (out, in_features) in `dtype`."""
        if self._weight is None or self._weight.data.dtype is not dtype:
            tensors = {kind: getattr(self, kind) for kind in self._kinds}
            make = narrow_operand if self.narrow else weight_operand
            operand = make(tensors, self.form, self.in_features)
            self._weight = operand._replace(data=ops.factor(operand.data, operand.grid, dtype), grid=None)
        return self._weight

    def _apply(self, *args: Any, **kwargs: Any) -> PackedLinear:
        self._weight = None  # unpack again where the packed weight has gone
        super()._apply(*args, **kwargs)
        return self


class PackedBranches(nn.Module):
    """The sum or the concatenation of a wide and a narrow branch (`questlm.quant.layers.branches`)."""

    def __init__(self, tensors: Mapping[str, Tensor], in_features: int, form: WeightFormat) -> None:
        super().__init__()
        assert form.narrow is not None
        self.by_rows, width = form.narrow.axis == "rows", form.narrow.width
        self.widths = [in_features - width, width]
        self.wide = PackedLinear(tensors, in_features if self.by_rows else self.widths[0], form)
        self.narrow = PackedLinear(tensors, in_features if self.by_rows else width, form, narrow=True)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.by_rows:
            return torch.cat((self.wide(input), self.narrow(input)), dim=-1)
        wide, narrow = input.split(self.widths, dim=-1)
        y: Tensor = self.wide(wide) + self.narrow(narrow)
        return y


class InputNorm(nn.Module):
    """The norm before a layer: gain (in_features,)."""

    gain: Tensor

    def __init__(self, gain: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("gain", gain)
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., in_features)."""
        return ops.rms_norm(input, self.gain, self.eps)


def packed_layer(tensors: Mapping[str, Tensor], in_features: int, form: WeightFormat) -> nn.Module:
    """The layer of a quantised matrix, with the norm before it where it has one."""
    layer = (PackedLinear if form.narrow is None else PackedBranches)(tensors, in_features, form)
    if form.input_norm is None:
        return layer
    return nn.Sequential(InputNorm(tensors["input_norm"], form.input_norm), layer)
