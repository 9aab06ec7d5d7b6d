"""Fading in and recipes of questlm in a `Trainer` of transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from questlm.errors import ConfigError
from questlm.quant import quantized_layers
from questlm.training.optim import Optimizers
from questlm.training.recipes import FadeIn, Moment, Recipe

__all__ = ["QuantizationCallback"]


class QuantizationCallback(TrainerCallback):
    """Calls recipes around each optimizer step of a `Trainer`, and fades quantisation in where the spec says so.

    The share of the budget that recipes see is that of the Trainer's steps.

    Args:
        recipes: such as `Cage(10.0)` or `WeightDecay(0.5)` (`questlm.training.recipes`), in the order of their calls.
    """

    def __init__(self, recipes: Iterable[Recipe] = ()) -> None:
        self.recipes = list(recipes)
        for recipe in self.recipes:
            if recipe.adds_loss or type(recipe).begin is not Recipe.begin:
                raise ConfigError(
                    f"{type(recipe).__name__} adds to the loss or reads files, which a callback cannot do for it; give "
                    "the Trainer a compute_loss_func, or train with `quest train --init-from`"
                )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the model is prepared, and call `before_step` for the first time."""
        layers = quantized_layers(kwargs["model"])
        if not layers:
            raise ConfigError("no layer of this model is quantised; call questlm.prepare(model, spec) before Trainer")
        fades = any(layer.strength is not None for layer in layers.values())
        if fades and not any(isinstance(recipe, FadeIn) for recipe in self.recipes):
            self.recipes.insert(0, FadeIn())
        _describe_groups(kwargs["optimizer"].param_groups)
        self.on_step_end(args, state, control, **kwargs)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `after_step` when the weights have moved, before the rate changes."""
        for recipe in self.recipes:
            recipe.after_step(_moment(state, **kwargs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Call `before_step` for the next step, before the model is evaluated or saved."""
        for recipe in self.recipes:
            recipe.before_step(_moment(state, **kwargs))


def _describe_groups(groups: list[dict[str, Any]]) -> None:
    """Give each group of parameters the keys that recipes look for (`questlm.training.optim.groups`)."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in groups]  # before warm-up
    for group, rate in zip(groups, rates, strict=True):
        group.setdefault("name", "matrices" if group["weight_decay"] > 0 else "others")
        group.setdefault("lr_ratio", rate / rates[0] if rates[0] > 0 else 1.0)


def _moment(state: TrainerState, model: nn.Module, optimizer: Any, **kwargs: Any) -> Moment:
    done = state.global_step / max(state.max_steps, 1)
    return Moment(model, Optimizers([optimizer]), min(done, 1.0), float(optimizer.param_groups[0]["lr"]))
