"""Weights quantised once for a whole optimizer step.

Between two optimizer steps weights do not change, and so neither do their codes nor the mask of their gradient. Inside
`held_weights` all forward passes use codes made once at its beginning; the gradients dy^T x_q add up in the rotated
domain in `weight.grad`, and at the end are masked and rotated back, once: dw = IHT(M * sum dy^T x_q). With n
micro-batches that saves n - 1 quantisations and n - 1 inverse transforms of every weight; the result is the same, up to
the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from questlm import ops
from questlm.quant.linear import FakeQuantLinear, HeldWeight

__all__ = ["held_weights"]


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Quantise the weights of `model` now and keep their codes inside the block; gradients are whole behind it.

    Enter it with autocast as in the forward passes. Layers whose weights are quantised in a way that learns, or not at
    all, are left alone.

    Raises:
        RuntimeError: a weight has a gradient already, which would mix with those of the block.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, FakeQuantLinear) and layer.holds]
    for layer in layers:
        if layer.weight.grad is not None:
            raise RuntimeError("held_weights needs weights without a gradient; call optimizer.zero_grad() first")
    try:
        for layer in layers:
            layer.held = _quantized(layer)
        yield
    finally:
        for layer in layers:
            _bring_back(layer)


@torch.no_grad()
def _quantized(layer: FakeQuantLinear) -> HeldWeight:
    quantizer = layer.weight_quantizer
    assert quantizer is not None and quantizer.grid is not None
    dtype = ops.compute_dtype(ops.autocast_dtype(layer.weight) or layer.weight.dtype)
    bound = getattr(quantizer, "mask_bound", None) if layer.weight.requires_grad else None
    with ops.without_autocast(layer.weight):
        encoded = ops.encode(layer.weight, quantizer.grid, layer.block_size, bound, dtype)
    return HeldWeight(encoded.operand, encoded.mask, dtype)


@torch.no_grad()
def _bring_back(layer: FakeQuantLinear) -> None:
    held, layer.held = layer.held, None
    gradient = layer.weight.grad
    if held is not None and gradient is not None:
        layer.weight.grad = ops.masked_hadamard(gradient, held.mask, layer.block_size, gradient.dtype)
