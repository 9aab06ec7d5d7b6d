"""Distillation: learn from the predictions of a finished model, the teacher, beside the text itself (arXiv 1503.02531).

To the loss of each token is added   weight * KL(p || q) = weight * sum_v p_v (log p_v - log q_v),   with the teacher's
probabilities p and the model's q over the vocabulary, both at temperature 1. The teacher computes without gradient, in
the precision of training, and is not sharded: every process has all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from questlm.config import TrainConfig
from questlm.errors import ArtifactError, CheckpointError, ConfigError, quoted
from questlm.training.recipes.base import Beginning, FrozenModel, Recipe

__all__ = ["Distill"]


class Distill(Recipe):
    """Adds the distance of the model's predictions from the teacher's to the loss.

    Args:
        teacher: folder of a run, of a packed model, or of a Llama from Hugging Face.
        weight: of the added term; the loss itself has weight 1.
    """

    not_recordable = "a teacher computes beside the model, and may look at its tensors from the CPU"
    adds_loss = True

    def __init__(self, teacher: str, weight: float) -> None:
        self.path, self.weight = teacher, weight
        self._teacher: FrozenModel

    @classmethod
    def from_settings(cls, train: TrainConfig, model: nn.Module) -> Self | None:
        """Asked for by `train.distill`."""
        return None if train.distill is None else cls(train.distill, train.distill_weight)

    def begin(self, beginning: Beginning) -> Mapping[str, str]:
        """Load the teacher.

        Raises:
            ConfigError: it has another vocabulary, or is no model that can be used.
            CheckpointError, ArtifactError: it is damaged.
        """
        try:
            self._teacher = beginning.load_model(self.path)
        except (ArtifactError, CheckpointError, ConfigError) as problem:
            raise type(problem)(f"{_named(self.path)} cannot be used: {problem}") from None
        _require_same_vocabulary(self._teacher, beginning, self.path)
        return {"train.distill": self._teacher.sha256}

    def loss(self, inputs: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        """The weighted Kullback-Leibler divergence in nats a token."""
        return self.weight * divergence(self._teacher.logits(inputs), logits)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) in nats, the mean over all tokens; logits (..., vocab_size) each."""
    log_p, log_q = (F.log_softmax(logits.flatten(0, -2).float(), dim=-1) for logits in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _named(path: str) -> str:
    return f"the teacher train.distill = {quoted(path, 200)}"


def _require_same_vocabulary(teacher: FrozenModel, beginning: Beginning, path: str) -> None:
    """Refuse a teacher whose token ids mean something else than the model's."""
    own, theirs, named = beginning.tokenizer, teacher.tokenizer, _named(path)
    hint = "train on its tokens, with --set data.tokenizer=PATH of its tokenizer.json, or take another teacher"
    if teacher.vocab_size != beginning.vocab_size:
        raise ConfigError(
            f"{named} has a vocabulary of {teacher.vocab_size} tokens, but this run one of {beginning.vocab_size}; "
            f"{hint}"
        )
    if own is not None and theirs is not None and own.get_vocab() != theirs.get_vocab():
        raise ConfigError(f"{named} has another tokenizer than this run; {hint}")
