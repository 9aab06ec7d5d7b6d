"""Packed weights of a model on a GPU: `questlm.ops.packed_linear` by the kernels of this folder.

Products of few rows read packed weights and expand them in registers. Products of many rows take so long that writing
the weight out first, one byte an entry, costs little; then the GPU's own product of float8 or int8 runs at full rate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from questlm import ops
from questlm.ops.dispatch import requested
from questlm.ops.machine import unavailable
from questlm.ops.packed import PackedFormat, PackedWeight
from questlm.ops.reference.matmul import Operand
from questlm.ops.triton import fits
from questlm.ops.triton import packed_linear as packed
from questlm.ops.triton.packed_linear import Encoding, LaidOut, Rows8

__all__ = ["FEW_ROWS", "TritonWeight", "written_out"]

FEW_ROWS = 16
"""More rows than these are multiplied with a weight that is written out first."""

_FLOAT8 = torch.float8_e4m3fn
_FLOAT8_LEVELS = 16


class TritonWeight(PackedWeight):
    """A weight in words that the GPU kernels expand in registers.

    Attributes:
        matrix: its codes, or the bytes of 8-bit rows.
        encoding: how inputs become codes; None: they do not.
        plain: whether the input's step comes from its rms alone, and there is no bias.
    """

    @classmethod
    def can_run(
        cls,
        tensors: Mapping[str, Tensor],
        format: PackedFormat,
        device: torch.device,
        dtype: torch.dtype,
        stay_packed: bool,
    ) -> str | None:
        """Dense codes of evenly spaced levels around 0, and inputs on such a grid or not rounded; 8-bit rows."""
        if reason := unavailable("triton"):
            return reason
        if device.type != "cuda" and requested() != "triton":
            return "the weight is not for a GPU, and Triton's interpreter, which is slow, runs only on request"
        if not stay_packed and requested() != "triton":  # until losses and text have been compared on a GPU
            return "on a GPU its kernels run only where weights are to stay packed, or on request"
        if tensors.keys() & {"offset", "act_offset", "kept"}:
            return "the GPU kernels know no offsets and no 2:4 sparse rows"
        if format.weight is None and "scale" not in tensors:
            return "the weight is not stored as codes"
        for grid in (format.weight, format.act):
            if grid is not None and (grid.table is not None or grid.zero is not None or grid.group):
                return "the GPU kernels take evenly spaced levels around 0"
        if format.weight is None and format.act is not None:
            return "8-bit rows are multiplied with inputs that are not rounded"
        if not fits(format.in_features, format.block_size):
            return f"the Triton kernels do not take rows of {format.in_features} in blocks of {format.block_size}"
        return None

    def __init__(
        self, tensors: Mapping[str, Tensor], format: PackedFormat, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.format, self.dtype, self.out_features = format, dtype, len(tensors["codes"])
        self._beside = {kind: tensors[kind].to(device) for kind in ("act_step", "bias") if kind in tensors}
        self.encoding: Encoding | None = None
        self.matrix: LaidOut | Rows8
        k, weight, act = format.in_features, format.weight, format.act
        if weight is None:
            scale = tensors["scale"].to(device, torch.float32).flatten().contiguous()
            self.matrix = Rows8(tensors["codes"].to(device).contiguous(), scale)
            return
        self.matrix = packed.lay_out_matrix(tensors, weight, act, k, device)
        if act is not None:
            self.encoding = Encoding(k, act, format.block_size, self.matrix.bits)

    @property
    def plain(self) -> bool:
        """Whether codes are those of `ops.encode`, and nothing is added to the product."""
        return self.encoding is not None and self.encoding.grid.plain and not self._beside

    @property
    def tensors(self) -> list[Tensor]:
        """Words and sums, or bytes; steps; and what is kept beside them."""
        matrix = self.matrix
        own = [matrix.bytes] if isinstance(matrix, Rows8) else [*matrix.words, matrix.term]
        found = [*own, matrix.step, *self._beside.values()]
        return [tensor for tensor in found if tensor is not None]

    def linear(self, rows: Tensor) -> Tensor:
        """Multiply x (tokens, in_features) by the weight: (tokens, out_features) of `dtype`."""
        if self.encoding is None:
            y = self._values(rows)
        elif len(rows) <= FEW_ROWS:
            y = self._few(rows, self.encoding)
        else:
            y = self._many(rows, self.encoding)
        bias = self._beside.get("bias")
        return y if bias is None else y + bias.to(y.dtype)

    def _few(self, rows: Tensor, how: Encoding) -> Tensor:
        assert isinstance(self.matrix, LaidOut)
        step = self._beside.get("act_step")
        if not len(rows):
            return rows.new_empty((0, self.out_features), dtype=self.dtype)
        if how.grid.plain and step is None:
            codes = packed.encode(rows.to(self.dtype).contiguous(), how, self.dtype)
        else:
            rows = rows if step is not None else rows.to(self.dtype)
            codes = packed.inputs_of(*ops.quantize(rows, how.grid, how.block_size, None, step)[:2], how)
        return packed.multiply(self.matrix, codes, self.dtype)

    def _many(self, rows: Tensor, how: Encoding) -> Tensor:
        matrix, grid, step = self.matrix, self.format.weight, self._beside.get("act_step")
        assert isinstance(matrix, LaidOut) and grid is not None
        if how.grid.plain and step is None:
            x = ops.encode(rows.to(self.dtype), how.grid, how.block_size, None, self.dtype).operand
        else:
            rows = rows if step is not None else rows.to(self.dtype)
            x = Operand(*_codes_on(how, ops.quantize(rows, how.grid, how.block_size, None, step)))
        return ops.scaled_matmul(x, self.operand(x.data.dtype), self.dtype)

    def operand(self, met: torch.dtype) -> Operand:
        """The weight written out for a product with codes of dtype `met`."""
        assert isinstance(self.matrix, LaidOut) and self.format.weight is not None
        return written_out(self.matrix, self.format.weight, met, self.dtype)

    def _values(self, rows: Tensor) -> Tensor:
        x = rows if self.format.block_size == 1 else ops.hadamard(rows, self.format.block_size)
        x = x.to(self.dtype).contiguous()
        if len(x) <= 4 * FEW_ROWS:
            return packed.multiply_values(self.matrix, x, self.dtype)
        if isinstance(self.matrix, Rows8):
            return F.linear(x, (self.matrix.bytes * self.matrix.step[:, None]).to(self.dtype))
        product = F.linear(x, packed.levels(self.matrix, self.dtype))
        return (product * self.matrix.step).to(self.dtype)


def written_out(matrix: LaidOut, grid: ops.Grid, met: torch.dtype, dtype: torch.dtype) -> Operand:
    """Return a matrix as the operand of a product in `dtype` with codes of dtype `met`, one or two bytes an entry."""
    step = matrix.step[:, None]
    if met is _FLOAT8 and grid.levels <= _FLOAT8_LEVELS:
        return Operand(packed.levels(matrix, _FLOAT8), None, step)
    if met is torch.int8 and grid.levels % 2 == 0:
        return Operand(packed.levels(matrix, torch.int8, 0.5), None, step, 0.5 * step)
    return Operand(packed.levels(matrix, dtype), None, step)


def _codes_on(how: Encoding, found: ops.Quantized) -> tuple[Tensor, ops.Grid, Tensor]:
    return found.codes, how.grid, found.step
