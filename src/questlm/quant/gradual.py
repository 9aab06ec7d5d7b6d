"""Fading quantisation in, layer by layer, for fine-tuning a model that was trained without it (arXiv 2505.08823).

While it lasts each factor z of a layer's product is z + lambda (Q(z) - z). The paper asks for a gradual, layer-wise
schedule and leaves its shape open. Ours: over the first `share` of the training, layer i of n (in the order in which
the model lists them) begins when i / (n - 1) of the first half of that time has passed, and its lambda then rises
linearly from 0 to 1 during the other half. From then on every product is computed from codes, as it will be in the
packed model.
"""

from __future__ import annotations

import torch
from torch import nn

from questlm.quant.linear import FakeQuantLinear
from questlm.quant.methods import find_method

__all__ = ["gradual_share", "refresh_blending", "set_quantization_strength"]


def gradual_share(layer: FakeQuantLinear) -> float:
    """Share of the training over which this layer's model fades quantisation in; 0: not at all."""
    own = layer.spec.gradual
    return find_method(layer.spec.method).gradual if own is None else own


def set_quantization_strength(model: nn.Module, done: float) -> None:
    """Set every layer's lambda for the share `done` (0 to 1) of the training. Without a schedule nothing changes."""
    layers = [layer for layer in _layers(model) if layer.strength is not None]
    for index, layer in enumerate(layers):
        ramp = gradual_share(layer) / 2
        start = ramp * index / max(len(layers) - 1, 1)
        strength = min(max((done - start) / ramp, 0.0), 1.0)
        layer.blending = done < 2 * ramp
        assert layer.strength is not None
        layer.strength.fill_(strength if layer.blending else 1.0)


@torch.no_grad()
def refresh_blending(model: nn.Module) -> None:
    """After loading weights: a model saved while quantisation was being faded in goes on blending."""
    layers = [layer for layer in _layers(model) if layer.strength is not None]
    unfinished = any(bool(layer.strength < 1) for layer in layers)  # type: ignore[operator]
    for layer in layers:
        layer.blending = unfinished


def _layers(model: nn.Module) -> list[FakeQuantLinear]:
    return [module for module in model.modules() if isinstance(module, FakeQuantLinear)]
