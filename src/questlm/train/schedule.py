"""Learning rate over the run: a cosine up, a cosine down, as in the published runs (method.md, section 2)."""

from __future__ import annotations

import math

from questlm.config import TrainConfig

__all__ = ["learning_rate"]


def learning_rate(train: TrainConfig, progress: float) -> float:
    """Learning rate when the share `progress` (0 to 1) of the budget is spent.

    From warmup_start * lr up to lr over the first `warmup` share, then down to final_lr * lr, both along half a cosine.
    A share, not a step number, so that budgets in tokens and in seconds follow the same curve.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < train.warmup:
        low, high, phase = train.warmup_start, 1.0, progress / train.warmup
        return train.lr * (low + (high - low) * (1 - math.cos(math.pi * phase)) / 2)
    phase = (progress - train.warmup) / (1 - train.warmup)
    return train.lr * (train.final_lr + (1 - train.final_lr) * (1 + math.cos(math.pi * phase)) / 2)
