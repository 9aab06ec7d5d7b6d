"""CAGE: pull weights towards their quantised values late in the training (arXiv 2510.18784).

After each optimizer step   w <- w - lr * lambda_t * (w - Q(w)),   with lambda_t zero for the first 80 % of the
training, then rising linearly to `train.cage` (10 in the paper). It needs nothing of the method but Q, so it goes with
any. It means most where Q(Q(w)) = Q(w); BitNet's ternary scale shrinks each time it is taken, and the weights with it.
"""

from __future__ import annotations

import torch
from torch import nn

from questlm.config import TrainConfig
from questlm.parallel import gathered, local_part
from questlm.quant import quantized_layers

__all__ = ["cage_strength", "pull_to_grid"]

_SILENT = 0.8


def cage_strength(train: TrainConfig, done: float) -> float:
    """lambda_t when the share `done` (0 to 1) of the training has passed."""
    return train.cage * max(0.0, done - _SILENT) / (1 - _SILENT)


@torch.no_grad()
def pull_to_grid(model: nn.Module, rate: float) -> None:
    """w <- w - rate (w - Q(w)) for every layer with quantised weights; `rate` is lr * lambda_t."""
    for layer in quantized_layers(model).values():
        if layer.weight_quantizer is not None:
            with gathered(layer):
                rounded = layer.rounded_weight()
            local_part(layer.weight).lerp_(local_part(rounded, like=layer.weight), rate)
