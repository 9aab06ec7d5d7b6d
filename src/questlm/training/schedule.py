"""Learning rate over the run: a warm-up along half a cosine, then the fall that `train.schedule` names.

To add a shape, put its function into SCHEDULES and its name into `TrainConfig.schedule` in `questlm/config/schema.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from questlm.config import TrainConfig

__all__ = ["SCHEDULES", "learning_rate"]


def _cosine(train: TrainConfig, progress: float) -> float:
    """1 at the peak rate, 0 at the final one: half a cosine from the warm-up to the end, as in the published runs."""
    phase = (progress - train.warmup) / (1 - train.warmup)
    return (1 + math.cos(math.pi * phase)) / 2


def _linear(train: TrainConfig, progress: float) -> float:
    """1 at the peak rate, 0 at the final one: 1 until the last `decay` share of the run, then along a line to 0."""
    return min(1.0, (1 - progress) / train.decay)


SCHEDULES: dict[str, Callable[[TrainConfig, float], float]] = {"cosine": _cosine, "linear": _linear}
"""(settings, share of the budget that is spent) -> where the rate is between its final value, 0, and its peak, 1."""


def learning_rate(train: TrainConfig, progress: float) -> float:
    """Return the learning rate when the share `progress` (0 to 1) of the budget is spent.

    From warmup_start * lr up to lr over the first `warmup` share, then down to final_lr * lr. It depends on a share and
    not on a step number, so that budgets in tokens and in seconds follow the same curve.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < train.warmup:
        low, high, phase = train.warmup_start, 1.0, progress / train.warmup
        return train.lr * (low + (high - low) * (1 - math.cos(math.pi * phase)) / 2)
    return train.lr * (train.final_lr + (1 - train.final_lr) * SCHEDULES[train.schedule](train, progress))
