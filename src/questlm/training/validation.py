"""Validation: on a part of the split while training, and on all of it at the end."""

from __future__ import annotations

from questlm.evaluation import Evaluation, evaluate
from questlm.quant import cached_weights
from questlm.training.compiling import uncompiled
from questlm.training.device import autocast
from questlm.training.state import TrainingState
from questlm.training.step import TrainStep

__all__ = ["validate_at_end", "validate_on_part"]


def validate_on_part(state: TrainingState, step: TrainStep) -> float:
    """Loss in nats a token on `train.eval_tokens` tokens, computed as training computes it."""
    run, train = state.run, state.run.config.train
    with autocast(run.device), uncompiled(), step.weight_cache():
        return evaluate(
            state.model, run.data.val, train.seq_len, max_tokens=train.eval_tokens, device=run.device,
            show_progress=False, processes=run.processes,
        ).loss  # fmt: skip


def validate_at_end(state: TrainingState) -> Evaluation:
    """Loss, perplexity and bits per byte on the whole split, in float32."""
    run, data, model = state.run, state.run.data, state.full_model()
    with uncompiled(), cached_weights(model):
        return evaluate(
            model, data.val, run.config.train.seq_len, text_bytes=data.val_bytes, end_of_text=data.end_of_text,
            device=run.device, processes=run.processes,
        )  # fmt: skip
