"""Weights quantised once for a whole optimizer step.

Between two optimizer steps weights do not change, and so neither do their codes nor the mask of their gradient. Inside
`held_weights` all forward passes use codes made once at its beginning; the gradients dy^T x_q add up in the rotated
domain in `weight.grad`, and at the end are masked and rotated back, once: dw = IHT(M * sum dy^T x_q). With n
micro-batches that saves n - 1 quantisations and n - 1 inverse transforms of every weight; the result is the same, up to
the order of summation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from questlm import ops
from questlm.quant.linear import FakeQuantLinear, HeldWeight
from questlm.quant.quantizers import DynamicQuantizer

__all__ = ["held_weights"]


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Quantise the weights of `model` now and keep their codes inside the block; gradients are whole behind it.

    Enter it with autocast as in the forward passes. Layers whose weights are quantised in a way that learns, or not at
    all, or that share a weight, are left alone.

    Raises:
        RuntimeError: a weight has a gradient already, which would mix with those of the block.
    """
    quantized = [layer for layer in model.modules() if isinstance(layer, FakeQuantLinear)]
    uses = Counter(id(layer.weight) for layer in quantized)  # a shared weight's gradient is not of one layer alone
    layers = [layer for layer in quantized if layer.holds and uses[id(layer.weight)] == 1]
    for layer in layers:
        if layer.weight.grad is not None:
            raise RuntimeError("held_weights needs weights without a gradient; call optimizer.zero_grad() first")
    try:
        for alike in _alike(layers):
            _hold(alike)
        yield
    finally:
        for alike in _alike([layer for layer in layers if layer.held is not None]):
            _bring_back(alike)
        for layer in layers:
            layer.held = None


def _alike(layers: list[FakeQuantLinear]) -> Iterable[list[FakeQuantLinear]]:
    """The layers in groups that can be quantised together."""
    groups: dict[object, list[FakeQuantLinear]] = {}
    for layer in layers:
        weight, quantizer = layer.weight, layer.weight_quantizer
        assert isinstance(quantizer, DynamicQuantizer)
        rounding = (quantizer.grid, quantizer.mask_bound, layer.block_size)
        key = (*rounding, weight.shape[1], weight.dtype, weight.device, weight.requires_grad)
        groups.setdefault(key, []).append(layer)
    return groups.values()


@torch.no_grad()
def _hold(layers: list[FakeQuantLinear]) -> None:
    first, quantizer = layers[0], layers[0].weight_quantizer
    assert isinstance(quantizer, DynamicQuantizer)
    dtype = ops.compute_dtype(ops.autocast_dtype(first.weight) or first.weight.dtype)
    bound = quantizer.mask_bound if first.weight.requires_grad else None
    with ops.without_autocast(first.weight):
        weights = [layer.weight for layer in layers]
        encoded = ops.encode_many(weights, quantizer.grid, first.block_size, bound, dtype)
    for layer, (operand, mask) in zip(layers, encoded, strict=True):
        layer.held = HeldWeight(operand, mask, dtype)


@torch.no_grad()
def _bring_back(layers: list[FakeQuantLinear]) -> None:
    reached = [(layer.weight.grad, layer.held.mask) for layer in layers if layer.held and layer.weight.grad is not None]
    if reached:
        gradients, masks = zip(*reached, strict=True)
        ops.masked_hadamard_many(gradients, masks, layers[0].block_size)
