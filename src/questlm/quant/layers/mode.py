"""How a quantised layer computes at the moment."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from questlm.ops import Operand

__all__ = ["CachedWeight", "LayerMode", "Mode"]


class Mode(Enum):
    """How a quantised layer computes, unless it takes its weight from a `CachedWeight`."""

    QUANTIZED = "quantized"
    """Quantise both factors of the product on every pass."""
    FADING_IN = "fading in"
    """Mix each factor z with its quantised values: z + strength (Q(z) - z)."""
    DENSE = "dense"
    """Compute the plain product of input and weight."""


class CachedWeight(NamedTuple):
    """The mode in which the weight's codes are kept for one optimizer step and not computed on every pass.

    Attributes:
        operand: codes (out, in) and step sizes (out, 1) of the weight.
        mask: bits of the entries whose gradient passes, or None where no gradient is needed or another holds them.
        dtype: of the products that the codes were prepared for.
        carrier: the leaf tensor (out, in) that takes the gradient in the rotated domain (`questlm.quant.autograd`).
            None: the layer's own `weight` does, so a dense pass would mix two domains there.
    """

    operand: Operand
    mask: Tensor | None
    dtype: torch.dtype
    carrier: Tensor | None


LayerMode = Mode | CachedWeight
