"""The interface between the training loop and recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from questlm.training.optim import Optimizers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Beginning", "FrozenModel", "Moment", "Recipe"]


@dataclass(frozen=True)
class FrozenModel:
    """A finished model that does not train.

    Attributes:
        logits: token ids (batch, tokens) int64 on the run's device -> logits (batch, tokens, vocab_size), no gradient.
        vocab_size: tokens that it knows.
        tokenizer: its own, or None where none lies beside its weights.
        sha256: of its weights.
    """

    logits: Callable[[Tensor], Tensor]
    vocab_size: int
    tokenizer: Tokenizer | None
    sha256: str


@dataclass(frozen=True)
class Beginning:
    """What a recipe may look at once, before the first step of a run or of its resumption.

    Attributes:
        model: the model, as the processes share it.
        vocab_size: tokens that it knows.
        tokenizer: of the run's data, or None.
        load_model: reads a model from a run folder, a packed model or a Hugging Face folder of a Llama; a relative path
            starts where the run was started.
    """

    model: nn.Module
    device: torch.device
    vocab_size: int
    tokenizer: Tokenizer | None
    load_model: Callable[[str], FrozenModel]


@dataclass(frozen=True)
class Moment:
    """What a recipe may look at and change before and after each step.

    Attributes:
        done: share of the budget that is spent, 0 to 1.
        lr: learning rate of the schedule for the next step, or of the one just made.
        record_again: to be called by a recipe that changed what the next step computes, from Python. A step that was
            recorded as a CUDA graph would go on as before; this one is dropped, and a new one is recorded.
    """

    model: nn.Module
    optimizer: Optimizers
    done: float
    lr: float
    record_again: Callable[[], None] = lambda: None


class Recipe:
    """One change of the training step: a subclass has one or more of the methods.

    Attributes:
        not_recordable: why a step cannot be recorded as a CUDA graph with this recipe, or None where it can. Only the
            passes and the optimizer are recorded, so what `after_step` does never stands in the way. Nor does a change
            at a few moments of the training, if it calls `Moment.record_again`.
        adds_loss: whether `loss` is to be called. The logits are then computed for it, and the loss is not compiled.
    """

    not_recordable: str | None = None
    adds_loss: bool = False

    def begin(self, beginning: Beginning) -> Mapping[str, str]:
        """Called once, before the first step of a run or of its resumption.

        Returns:
            SHA-256 of what the recipe reads from outside the run, by setting: a name that no other recipe of the run
            uses. A run is only resumed with the same.

        Raises:
            ConfigError, CheckpointError: the recipe cannot be used.
        """
        return {}

    def before_step(self, moment: Moment) -> None:
        """Called before the first step, and again after each step, before the model is validated or saved."""

    def loss(self, inputs: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        """A term to add to the loss of each micro-batch, if `adds_loss`: a scalar, the mean over its tokens.

        Called inside autocast, on each process with its own sequences. Micro-batches are weighted by their share of the
        batch and processes are averaged, as the loss is. Curves and records show the loss without the term.

        Args:
            inputs, targets: (sequences, tokens) int64.
            logits: the model's, (sequences, tokens, vocab_size), with gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} says that it adds to the loss, but has no method `loss`")

    def after_step(self, moment: Moment) -> None:
        """Called when the optimizer has moved the weights; `moment.done` and `moment.lr` are those of that step."""
