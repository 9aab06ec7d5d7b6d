"""Fading quantisation in, layer by layer, for fine-tuning a model that was trained without it (arXiv 2505.08823).

During that time each factor z of a layer's product is replaced by z + lambda (Q(z) - z). The paper asks for a gradual,
layer-wise schedule and leaves its shape open. Ours: over the first `share` of the training, layer i of n (in the order
in which the model lists them) begins when i / (n - 1) of the first half of that time has passed, and its lambda then
rises linearly from 0 to 1 during the other half. From then on every product is computed from codes, as it will be in
the packed model.
"""

from __future__ import annotations

from torch import nn

from questlm.quant.layers.linear import FakeQuantLinear
from questlm.quant.layers.mode import Mode
from questlm.quant.methods import gradual_share

__all__ = ["set_quantization_strength"]


def set_quantization_strength(model: nn.Module, done: float) -> None:
    """Set every layer's lambda when the share `done` (0 to 1) of the training is over.

    Layers without a gradual schedule do not change. All others mix until the last one is fully quantised, so that
    torch.compile makes two graphs and not one for each layer.

    Raises:
        RuntimeError: inside `questlm.quant.dense` or `cached_weights`, whose end would undo it.
    """
    modules = (module for module in model.modules() if isinstance(module, FakeQuantLinear))
    layers = [layer for layer in modules if layer.strength is not None]
    for index, layer in enumerate(layers):
        share = gradual_share(layer.spec)
        if done >= share and layer.mode is not Mode.FADING_IN:
            continue  # finished before; do not write to the device again
        ramp = share / 2
        start = ramp * index / max(len(layers) - 1, 1)
        strength = min(max((done - start) / ramp, 0.0), 1.0) if done < share else 1.0
        layer.set_strength(strength, fading=done < share)
