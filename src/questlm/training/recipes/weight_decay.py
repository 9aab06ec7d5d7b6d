"""End weight decay before the training ends."""

from __future__ import annotations

from typing import Self

from torch import nn

from questlm.config import TrainConfig
from questlm.training.recipes.base import Moment, Recipe

__all__ = ["WeightDecay"]


class WeightDecay(Recipe):
    """Switches weight decay off from a share of the budget on.

    Without decay at the end, weights settle where the gradient takes them, as in the second stage of the training of
    BitNet b1.58 2B4T (arXiv 2504.12285).
    """

    def __init__(self, until: float) -> None:
        self.until = until

    @classmethod
    def from_settings(cls, train: TrainConfig, model: nn.Module) -> Self | None:
        """Asked for by `train.weight_decay_until` below 1."""
        return cls(train.weight_decay_until) if train.weight_decay_until < 1 else None

    def before_step(self, moment: Moment) -> None:
        """End the decay of the matrices once its time has passed."""
        if moment.done >= self.until:
            decayed = [
                group for group in moment.optimizer.groups if group["name"] == "matrices" and group["weight_decay"]
            ]
            for group in decayed:
                group["weight_decay"] = 0.0
            if decayed:
                moment.record_again()
