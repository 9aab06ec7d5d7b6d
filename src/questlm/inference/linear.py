"""A linear layer that runs from packed codes, with the same numbers as the layer that was trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.ops import LinearFormat

__all__ = ["PackedLinear"]


class PackedLinear(nn.Module):
    """y = x_q w_q^T of input (..., in_features), as the fake-quantised layer computes it in training.

    Computes in the autocast dtype if one is on, else in float32; float16 is computed in float32, because a product of
    codes can leave its range.

    The state is the packed weight. The first call unpacks it to multiples of the step, in the dtype computed in, and
    keeps them beside it: 4 bytes a weight (2 in bfloat16). PyTorch has no product for packed codes, and for one token
    through a 640 x 1792 layer of 4 bits (one CPU thread), unpacking each time costs 13 ms and converting unpacked codes
    each time 0.4 ms, where the product itself costs 0.15 ms.

    Args:
        weight: packed codes (out, packed_width(in_features, levels)) uint8; or, where `form.weight` is None, the weight
            (out, in_features) float32, not rotated.
        step: (out, 1) float32, or None where `form.weight` is None.
    """

    weight: Tensor
    step: Tensor | None
    _factor: Tensor | None

    def __init__(self, weight: Tensor, step: Tensor | None, in_features: int, form: LinearFormat) -> None:
        super().__init__()
        self.in_features, self.form = in_features, form
        self.register_buffer("weight", weight)
        self.register_buffer("step", step)
        self.register_buffer("_factor", None, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        dtype = _compute_dtype(input.device.type)
        rows = input.reshape(-1, self.in_features)
        form = self.form
        with torch.autocast(input.device.type, enabled=False):
            if form.act is None:
                x, x_step = ops.hadamard(rows, form.block_size), None
            else:
                x, x_step, _ = ops.quantize(rows, form.act, form.block_size)
            y = ops.scaled_matmul(x, x_step, form.act, self._unpacked(dtype), self.step, None, dtype)
        return y.reshape(*input.shape[:-1], -1)

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight as a factor of the product, (out, in_features) of `dtype`, without its steps."""
        if self._factor is None or self._factor.dtype is not dtype:
            grid = self.form.weight
            if grid is None:
                self._factor = ops.hadamard(self.weight, self.form.block_size).to(dtype)
            else:
                self._factor = ops.factor(ops.unpack(self.weight, grid.levels, self.in_features), grid, dtype)
        return self._factor


def _compute_dtype(device_type: str) -> torch.dtype:
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else torch.float32
    return torch.float32 if dtype is torch.float16 else dtype
