"""Layers that run from packed weights, with the same numbers as the layers that were trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.artifact.format import WeightFormat
from questlm.artifact.matrices import packed_matrix, packed_narrow, weight_operand
from questlm.humanize import bytes_text
from questlm.ops import PackedFormat, PackedWeight
from questlm.ops.reference.storage import from_int8_rows

if TYPE_CHECKING:
    from questlm.ops.cpu.llama import NativeLinear

__all__ = ["NormedLinear", "PackedBranches", "PackedEmbedding", "PackedLinear", "Prepack", "packed_layer"]

Prepack = Callable[[Mapping[str, Tensor], PackedFormat], PackedWeight]
"""`ops.prepack` for the device and dtype that a model runs in."""


class PackedLinear(nn.Module):
    """The linear layer of a packed weight: input (..., in_features), output (..., out_features) of the weight's dtype.

    The weight stays on the device that it was laid out for: moving the module does not move it.
    """

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (..., out_features) for an input (..., in_features)."""
        return ops.packed_linear(input, self.weight)

    def native_linear(self) -> NativeLinear | str:
        """This layer for the native forward pass, or the reason why it cannot be in it."""
        return self.weight.native_linear()

    def extra_repr(self) -> str:
        """Shape, levels of weights and inputs, implementation and memory, for `repr`."""
        weight, stored = self.weight, self.weight.format
        factors = {"weights": stored.weight, "inputs": stored.act}
        levels = [f"{grid.levels}-level {name}" if grid else f"float {name}" for name, grid in factors.items()]
        shape = f"in_features={stored.in_features}, out_features={weight.out_features}"
        return f"{shape}, {', '.join(levels)}, {type(weight).__name__}, {bytes_text(weight.nbytes)}"


class PackedBranches(nn.Module):
    """The sum or the concatenation of a wide and a narrow branch (`questlm.quant.layers.branches`)."""

    def __init__(
        self, tensors: Mapping[str, Tensor], in_features: int, weight_format: WeightFormat, prepack: Prepack
    ) -> None:
        super().__init__()
        assert weight_format.narrow is not None
        self.by_rows, width = weight_format.narrow.axis == "rows", weight_format.narrow.width
        self.widths = [in_features - width, width]
        wide, narrow = [in_features, in_features] if self.by_rows else self.widths
        self.wide = PackedLinear(prepack(*packed_matrix(tensors, weight_format, wide)))
        self.narrow = PackedLinear(prepack(*packed_narrow(tensors, weight_format, narrow)))

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (..., out_features) for an input (..., in_features)."""
        if self.by_rows:
            return torch.cat((self.wide(input), self.narrow(input)), dim=-1)
        wide, narrow = input.split(self.widths, dim=-1)
        y: Tensor = self.wide(wide) + self.narrow(narrow)
        return y

    def native_linear(self) -> NativeLinear | str:
        """This layer for the native forward pass, or the reason why it cannot be in it."""
        wide, narrow = self.wide.native_linear(), self.narrow.native_linear()
        if isinstance(wide, str) or isinstance(narrow, str):
            return wide if isinstance(wide, str) else str(narrow)
        return wide.with_narrow(narrow, self.by_rows)


class NormedLinear(nn.Module):
    """A layer behind a norm of its own: gain (in_features,)."""

    gain: Tensor

    def __init__(self, gain: Tensor, eps: float, layer: PackedLinear | PackedBranches) -> None:
        super().__init__()
        self.register_buffer("gain", gain)
        self.eps, self.layer = eps, layer

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (..., out_features) for an input (..., in_features)."""
        y: Tensor = self.layer(ops.rms_norm(input, self.gain, self.eps))
        return y

    def native_linear(self) -> NativeLinear | str:
        """This layer for the native forward pass, or the reason why it cannot be in it."""
        linear = self.layer.native_linear()
        return linear if isinstance(linear, str) else linear.with_norm(self.gain, self.eps)


class PackedEmbedding(nn.Module):
    """Looks rows up in an embedding that stays as it is stored: float32, bfloat16, or codes with scales or steps.

    Args:
        tensors: `weight` (entries, width); or `codes` int8 (entries, width) and `scale` float32 (entries, 1); or packed
            `codes` and `step` (entries, 1).
        weight_format: how they are stored.
        width: of a row.
    """

    def __init__(self, tensors: Mapping[str, Tensor], weight_format: WeightFormat, width: int) -> None:
        super().__init__()
        self.weight_format, self.width = weight_format, width
        for kind, tensor in tensors.items():
            self.register_buffer(kind, tensor)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows (..., width) float32 of token ids (...)."""
        rows = {kind: tensor[ids] for kind, tensor in self.named_buffers()}
        if "scale" in rows:
            return from_int8_rows(rows["codes"], rows["scale"])
        if "step" in rows:
            flat = {kind: row.reshape(-1, row.shape[-1]) for kind, row in rows.items()}
            values = ops.operand_values(weight_operand(flat, self.weight_format, self.width))
            return values.reshape(*ids.shape, self.width)
        return rows["weight"].to(torch.float32)

    def extra_repr(self) -> str:
        """Shape and format, for `repr`."""
        entries = next(iter(self.buffers())).shape[0]
        return f"{entries}, {self.width}, {', '.join(f'{k} {t.dtype}' for k, t in self.named_buffers())}"

    def native_embedding(self) -> dict[str, Tensor] | str:
        """The tensors that the native forward pass looks rows up in, or the reason why it cannot."""
        tensors = dict(self.named_buffers())
        return "its rows are packed codes, which only torch looks up" if "step" in tensors else tensors


def packed_layer(
    tensors: Mapping[str, Tensor], in_features: int, weight_format: WeightFormat, prepack: Prepack
) -> PackedLinear | PackedBranches | NormedLinear:
    """The layer of a matrix (out, in_features), with the norm before it where it has one."""
    layer: PackedLinear | PackedBranches
    if weight_format.narrow is None:
        layer = PackedLinear(prepack(*packed_matrix(tensors, weight_format, in_features)))
    else:
        layer = PackedBranches(tensors, in_features, weight_format, prepack)
    if weight_format.input_norm is None:
        return layer
    return NormedLinear(tensors["input_norm"], weight_format.input_norm, layer)
