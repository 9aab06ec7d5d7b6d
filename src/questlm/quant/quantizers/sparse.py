"""2:4 sparse weights in bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm import ops
from questlm.ops import Operand
from questlm.ops.reference.storage import as_stored
from questlm.quant.quantizers.base import Quantizer, StraightThrough

__all__ = ["SparseQuantizer"]


class SparseQuantizer(Quantizer):
    """2:4 sparse bf16 weights: of each 4 neighbouring entries the 2 largest, rounded; straight-through gradient.

    Entries that are dropped keep their gradient too, so that they can come back.
    """

    values_format = "bf16-2:4"

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.grid, self.block_size = None, block_size

    def operand(self, x: Tensor) -> Operand:
        rotated = ops.hadamard(x.detach().to(torch.promote_types(x.dtype, torch.float32)), self.block_size)
        return Operand(as_stored(rotated, "bf16") * ops.kept_entries(rotated, 1))

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        result: Tensor = StraightThrough.apply(ops.hadamard(x, self.block_size), operand.data)
        return result
