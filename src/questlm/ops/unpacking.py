"""Packed weights in plain PyTorch: unpacked by tiles of rows for each product, or once and for all.

`TiledWeight` defines what `packed_linear` computes and keeps the stored bytes and nothing else. For each product it
unpacks one tile after the other, of at most 2^18 entries (1 MiB in float32), so beside input and output it takes no
more than 4 MiB where a row is not longer than that.

`UnpackedWeight` keeps every weight as a number of 2 or 4 bytes. For one token that is several times as fast, because
PyTorch has no product of packed codes, and unpacking takes longer than the product itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from questlm import ops
from questlm.ops.packed import PackedFormat, PackedWeight
from questlm.ops.reference.matmul import Operand, factor, scaled_matmul
from questlm.ops.reference.storage import from_int8_rows

__all__ = ["TiledWeight", "UnpackedWeight", "input_operand", "stored_rows"]

_TILE_ENTRIES = 2**18
_BY_ROWS = ("codes", "step", "offset", "kept", "weight", "scale")


class TiledWeight(PackedWeight):
    """The stored bytes of a matrix, unpacked by tiles of rows for each product."""

    @classmethod
    def can_run(cls, *case: object) -> None:
        """It runs everything, everywhere."""

    def __init__(
        self, tensors: Mapping[str, Tensor], format: PackedFormat, device: torch.device, dtype: torch.dtype
    ) -> None:
        own = {kind: tensor.to(device) for kind, tensor in tensors.items()}
        if "weight" in own and "kept" not in own and format.block_size > 1:
            own["weight"] = ops.hadamard(own["weight"], format.block_size)  # once, not for each product
        self.format, self.dtype, self._tensors = format, dtype, own
        self.out_features = len(own["weight" if "weight" in own else "codes"])
        self._stored = replace(format, block_size=1)
        self._rows = {kind: own[kind] for kind in _BY_ROWS if kind in own}
        self._tile = max(1, _TILE_ENTRIES // format.in_features)

    @property
    def tensors(self) -> list[Tensor]:
        """The stored tensors."""
        return list(self._tensors.values())

    def linear(self, rows: Tensor) -> Tensor:
        """Multiply x (tokens, in_features) by the weight: (tokens, out_features) of `dtype`."""
        x = input_operand(rows, self._tensors, self.format, self.dtype)
        x = x._replace(data=factor(x.data, x.grid, self.dtype), grid=None)
        y = rows.new_empty((len(rows), self.out_features), dtype=self.dtype)
        for start in range(0, self.out_features, self._tile):
            y[:, start : start + self._tile] = scaled_matmul(x, self.tile(start), self.dtype)
        return _with_bias(y, self._tensors)

    def tile(self, start: int) -> Operand:
        """The rows from `start` on that make one tile, as a factor of the product."""
        some = {kind: tensor[start : start + self._tile] for kind, tensor in self._rows.items()}
        return stored_rows(some, self._stored)


class UnpackedWeight(PackedWeight):
    """The weight as multiples of its steps, or as values, of `dtype`: ready for the product of PyTorch."""

    @classmethod
    def can_run(
        cls,
        tensors: Mapping[str, Tensor],
        format: PackedFormat,
        device: torch.device,
        dtype: torch.dtype,
        stay_packed: bool,
    ) -> str | None:
        """It runs everything, but not in the packed size."""
        return f"it keeps {dtype.itemsize} bytes a weight, and weights are to stay packed" if stay_packed else None

    def __init__(
        self, tensors: Mapping[str, Tensor], format: PackedFormat, device: torch.device, dtype: torch.dtype
    ) -> None:
        packed = TiledWeight(tensors, format, device, dtype)
        self.format, self.dtype, self.out_features = format, dtype, packed.out_features
        kept = ("act_step", "act_offset", "bias")
        self._tensors = {kind: tensor.to(device) for kind, tensor in tensors.items() if kind in kept}
        data = torch.empty((self.out_features, format.in_features), dtype=dtype, device=device)
        start = 0
        while start < self.out_features:
            tile = packed.tile(start)
            data[start : start + len(tile.data)] = factor(tile.data, tile.grid, dtype)
            start += len(tile.data)
        coded = format.weight is not None
        steps = {kind: tensors[kind].to(device) for kind in ("step", "offset") if coded and kind in tensors}
        self._weight = Operand(data, None, **steps)

    @property
    def tensors(self) -> list[Tensor]:
        """The unpacked weight, and what is kept beside it."""
        parts = (self._weight.data, self._weight.step, self._weight.offset, *self._tensors.values())
        return [tensor for tensor in parts if tensor is not None]

    def linear(self, rows: Tensor) -> Tensor:
        """Multiply x (tokens, in_features) by the weight: (tokens, out_features) of `dtype`."""
        x = input_operand(rows, self._tensors, self.format, self.dtype)
        return _with_bias(scaled_matmul(x, self._weight, self.dtype), self._tensors)


def input_operand(rows: Tensor, tensors: Mapping[str, Tensor], format: PackedFormat, dtype: torch.dtype) -> Operand:
    """The input (tokens, K) of a layer as a factor of its product: rotated, and where `format` says so, as codes."""
    if format.act is None:
        return Operand(rows if format.block_size == 1 else ops.hadamard(rows, format.block_size))
    step, offset = tensors.get("act_step"), tensors.get("act_offset")
    if step is None:
        rows = rows.to(dtype)  # as in training: see questlm.quant.layers.linear
    codes, steps, _ = ops.quantize(rows, format.act, format.block_size, None, step, offset)
    return Operand(codes, format.act, steps, offset)


def stored_rows(tensors: Mapping[str, Tensor], format: PackedFormat) -> Operand:
    """All rows of a stored matrix as a factor of a product, (rows, K), in the Hadamard domain.

    Args:
        tensors: by kind, as `questlm.ops.prepack` takes them.
    """
    grid, kept, k = format.weight, tensors.get("kept"), format.in_features
    if "scale" in tensors:
        return Operand(from_int8_rows(tensors["codes"], tensors["scale"]))
    if grid is None:
        weight = tensors["weight"]
        if kept is not None:
            return Operand(ops.unpack_sparse(weight.float(), kept, 1, 0))
        return Operand(weight if format.block_size == 1 else ops.hadamard(weight, format.block_size))
    if kept is not None:
        half = ops.unpack(tensors["codes"], grid.levels, k // 2)
        codes = ops.unpack_sparse(half, kept, grid.group, grid.levels)
    else:
        codes = ops.unpack(tensors["codes"], grid.levels, k)
    return Operand(codes, grid, tensors["step"], tensors.get("offset"))


def _with_bias(y: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    bias = tensors.get("bias")
    return y if bias is None else y + bias.to(y.dtype)
