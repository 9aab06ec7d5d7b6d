"""Weights quantised once for a whole optimizer step.

Between two optimizer steps weights do not change, so their codes and the mask of their gradient do not change either.
Inside `cached_weights` all forward passes use codes made once at its beginning; the gradients dy^T x_q add up in the
rotated domain, in a leaf that stands for the weight, and at the end are masked and rotated back, once, into
`weight.grad`: dw = IHT(M * sum dy^T x_q). With n micro-batches that saves n - 1 quantisations and n - 1 inverse
transforms of every weight; the result is the same, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.quant.layers.linear import FakeQuantLinear
from questlm.quant.layers.mode import CachedWeight, Mode
from questlm.quant.quantizers import MaskedRounding

__all__ = ["cached_weights"]


@contextmanager
def cached_weights(model: nn.Module, through_parameters: bool = False) -> Iterator[None]:
    """Quantise the weights of `model` now and use these codes in all passes inside the block.

    Weight gradients are complete when the block ends. Enter it under the same autocast as the forward passes, and run
    the backward passes inside too. Layers whose weight quantiser learns, or that have none, are not affected.

    Args:
        through_parameters: accumulate gradients in `weight.grad` itself, as DDP needs, whose hooks watch it. Then no
            weight may have a gradient yet, nor receive one from anything but its layer.

    Raises:
        RuntimeError: a weight has a gradient already, which would mix with those of the block.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, FakeQuantLinear) and layer.caches_weight]
    if through_parameters and any(layer.weight.grad is not None for layer in layers):
        raise RuntimeError(
            "cached_weights(through_parameters=True) needs weights without a gradient; call "
            "optimizer.zero_grad(set_to_none=True) first"
        )
    cached: list[tuple[FakeQuantLinear, CachedWeight]] = []
    groups = []
    try:
        for group in _alike(layers):
            groups.append(_encode(group, through_parameters))
            cached += groups[-1]
            for layer, weight in groups[-1]:
                layer.mode = weight
        yield
        for made in groups:
            _finish_gradients(made)
    finally:
        for layer, weight in cached:
            layer.mode = Mode.QUANTIZED
            if weight.carrier is not None and weight.carrier.requires_grad:
                weight.carrier.register_hook(_too_late)


def _alike(layers: list[FakeQuantLinear]) -> list[list[FakeQuantLinear]]:
    """Group the layers that one kernel call can quantise together."""
    groups: dict[object, list[FakeQuantLinear]] = {}
    for layer in layers:
        weight = layer.weight
        key = (_rounding(layer), weight.shape[1], weight.dtype, weight.device, weight.requires_grad)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _rounding(layer: FakeQuantLinear) -> MaskedRounding:
    assert layer.weight_quantizer is not None
    rounding = layer.weight_quantizer.rounding
    assert rounding is not None  # or the layer would not cache its weight
    return rounding


@torch.no_grad()
def _encode(layers: list[FakeQuantLinear], through_parameters: bool) -> list[tuple[FakeQuantLinear, CachedWeight]]:
    first, rounding = layers[0], _rounding(layers[0])
    dtype = ops.compute_dtype(ops.autocast_dtype(first.weight) or first.weight.dtype)
    bound = rounding.mask_bound if first.weight.requires_grad else None
    with ops.without_autocast(first.weight):
        weights = [layer.weight for layer in layers]
        encoded = ops.encode_many(weights, rounding.grid, first.block_size, bound, dtype)
    cached = []
    for layer, (operand, mask) in zip(layers, encoded, strict=True):
        weight = layer.weight
        carrier = None if through_parameters else weight.detach().requires_grad_(weight.requires_grad)
        cached.append((layer, CachedWeight(operand, mask, dtype, carrier)))
    return cached


@torch.no_grad()
def _finish_gradients(cached: Iterable[tuple[FakeQuantLinear, CachedWeight]]) -> None:
    """Mask and rotate back the gradients of layers of one kind, and add them to those of the weights."""
    reached = []
    for layer, weight in cached:
        gradient = (layer.weight if weight.carrier is None else weight.carrier).grad
        if gradient is not None:
            reached.append((layer, gradient, weight.mask))
    if not reached:
        return
    _, gradients, masks = zip(*reached, strict=True)
    ops.masked_hadamard_many(gradients, masks, reached[0][0].block_size)
    for layer, gradient, _ in reached:
        if layer.weight.grad is None:
            layer.weight.grad = gradient
        elif layer.weight.grad is not gradient:
            layer.weight.grad += gradient


def _too_late(gradient: Tensor) -> None:
    raise RuntimeError("a backward pass through cached weights came after their block; do it inside cached_weights")
