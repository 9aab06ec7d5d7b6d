"""The interface between the training loop and recipes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from questlm.training.optim import Optimizers

__all__ = ["Moment", "Recipe"]


@dataclass(frozen=True)
class Moment:
    """What a recipe may look at and change.

    Attributes:
        done: share of the budget that is spent, 0 to 1.
        lr: learning rate of the schedule for the next step, or of the one just made.
    """

    model: nn.Module
    optimizer: Optimizers
    done: float
    lr: float


class Recipe:
    """One change of the training step: a subclass has one of the two methods, or both.

    Attributes:
        not_recordable: why a step cannot be recorded as a CUDA graph with this recipe, or None where it can. Only the
            passes and the optimizer are recorded, so what `after_step` does never stands in the way.
    """

    not_recordable: str | None = None

    def before_step(self, moment: Moment) -> None:
        """Called before the first step, and again after each step, before the model is validated or saved."""

    def after_step(self, moment: Moment) -> None:
        """Called when the optimizer has moved the weights; `moment.done` and `moment.lr` are those of that step."""
