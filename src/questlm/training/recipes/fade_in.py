"""Fade quantisation in, layer by layer, over the first part of the training (`questlm.quant.gradual`)."""

from __future__ import annotations

from typing import Self

from torch import nn

from questlm.config import TrainConfig
from questlm.quant import quantized_layers, set_quantization_strength
from questlm.training.recipes.base import Moment, Recipe

__all__ = ["FadeIn"]


class FadeIn(Recipe):
    """Sets every layer's strength of quantisation."""

    not_recordable = "quantisation is faded in, so that steps are not alike"

    @classmethod
    def from_settings(cls, train: TrainConfig, model: nn.Module) -> Self | None:
        """Asked for by `quant.gradual` or the method."""
        fades = any(layer.strength is not None for layer in quantized_layers(model).values())
        return cls() if fades else None

    def before_step(self, moment: Moment) -> None:
        """Set the strength for the share of the budget that is spent."""
        set_quantization_strength(moment.model, moment.done)
