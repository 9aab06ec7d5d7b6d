"""How a quantised layer computes at the moment."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from questlm.errors import ConfigError
from questlm.ops import Operand
from questlm.quant.autograd import Rows

__all__ = ["NO_SCHEDULE", "CachedWeight", "LayerMode", "Mode", "check_change"]

NO_SCHEDULE = "this layer was prepared without a gradual schedule; set quant.gradual"
"""What is wrong where quantisation of a layer cannot be faded in."""


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

    def rows(self, weight: Tensor, dtype: torch.dtype) -> Rows:
        """Return the codes as a factor of products in `dtype`, with the gradient of `weight` or of the carrier.

        Raises:
            RuntimeError: the codes were prepared for products in another dtype.
        """
        if self.dtype is not dtype:
            raise RuntimeError(
                f"weights are cached for products in {self.dtype}, but this forward pass computes in {dtype}; "
                "enter cached_weights with autocast as in the forward passes"
            )
        return Rows(self.operand, weight if self.carrier is None else self.carrier)


LayerMode = Mode | CachedWeight


def check_change(before: LayerMode, after: LayerMode, fades: bool, rounds_weight: bool) -> None:
    """Refuse a change of mode after which a layer's passes or gradients would be wrong.

    Args:
        fades: whether the layer was prepared with a gradual schedule.
        rounds_weight: whether codes and gradient of its weight follow from rounding alone.

    Raises:
        ConfigError: FADING_IN for a layer that was prepared without a gradual schedule.
        RuntimeError: cached codes of a weight that cannot be cached, or DENSE and codes without a gradient of their
            own at once.
    """
    if after is Mode.FADING_IN and not fades:
        raise ConfigError(NO_SCHEDULE)
    if isinstance(after, CachedWeight) and not rounds_weight:
        raise RuntimeError("only a weight that is rounded without learned parameters can be cached")
    # Without a carrier, the layer's own weight takes the gradient of the codes.
    replaced = any(isinstance(mode, CachedWeight) and mode.carrier is None for mode in (before, after))
    if Mode.DENSE in (before, after) and replaced:
        raise RuntimeError(
            "a dense pass inside cached_weights would leave its gradient masked and rotated, and one of a weight "
            "that is gathered as codes has no weight; run it outside, before the model is sharded"
        )
