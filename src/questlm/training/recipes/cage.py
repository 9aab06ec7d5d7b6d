"""CAGE: pull weights towards their quantised values late in the training (arXiv 2510.18784).

After each optimizer step   w <- w - lr * lambda_t * (w - Q(w)),   with lambda_t zero for the first 80 % of the
training, then rising linearly to `train.cage` (10 in the paper). lr is the rate at which the optimizer moves w: like
weight decay the pull is added to the update and not preconditioned, so under Muon it is that of the matrices. It needs
nothing of the method but Q, so it goes with any. It means most where Q(Q(w)) = Q(w); BitNet's ternary scale shrinks
each time it is taken, and the weights with it.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from questlm.config import TrainConfig
from questlm.parallel import gathered, local_shard
from questlm.quant import FakeQuantLinear, quantized_layers
from questlm.training.recipes.base import Moment, Recipe

__all__ = ["Cage", "pull_to_grid"]

_SILENT = 0.8


class Cage(Recipe):
    """Pulls weights to their grid after each step.

    Args:
        strength: lambda_t at the end of the training.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    @classmethod
    def from_settings(cls, train: TrainConfig, model: nn.Module) -> Self | None:
        """Asked for by `train.cage`."""
        return cls(train.cage) if train.cage > 0 else None

    def strength_at(self, done: float) -> float:
        """Return lambda_t when the share `done` (0 to 1) of the training has passed, by the formula above."""
        return self.strength * max(0.0, done - _SILENT) / (1 - _SILENT)

    def after_step(self, moment: Moment) -> None:
        """Pull each weight by its learning rate times lambda_t."""
        if (strength := self.strength_at(moment.done)) > 0:
            groups = moment.optimizer.groups
            ratios = {id(weight): float(group["lr_ratio"]) for group in groups for weight in group["params"]}
            for layer in quantized_layers(moment.model).values():
                _pull(layer, moment.lr * ratios.get(id(layer.weight), 0.0) * strength)  # a frozen weight is in no group


def pull_to_grid(model: nn.Module, rate: float) -> None:
    """w <- w - rate (w - Q(w)) for every layer with quantised weights."""
    for layer in quantized_layers(model).values():
        _pull(layer, rate)


@torch.no_grad()
def _pull(layer: FakeQuantLinear, rate: float) -> None:
    if layer.weight_quantizer is not None:
        with gathered(layer):
            rounded = layer.rounded_weight()
        local_shard(layer.weight).lerp_(local_shard(rounded, like=layer.weight), rate)
