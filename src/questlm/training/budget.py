"""Sentences about a run's budget, printed before its first step, and the refusal of one that takes too long."""

from __future__ import annotations

from questlm.config import RunConfig
from questlm.errors import ConfigError
from questlm.humanize import count_text, duration_text

__all__ = ["budget_text", "chosen_text", "require_short"]


def budget_text(config: RunConfig, step_seconds: float, share_done: float = 0.0) -> str:
    """The budget, in steps and in time, as one line.

    Args:
        step_seconds: how long a step takes, as measured.
        share_done: of the budget, before the run was resumed.
    """
    step = f"one step is {config.train.tokens_per_step:,} tokens"
    speed = f"{count_text(config.train.tokens_per_step / step_seconds)} tokens/s"
    left = " for what is left" if share_done else ""
    if config.budget.seconds is not None:
        given, seconds = duration_text(config.budget.seconds), (1 - share_done) * config.budget.seconds
        if step_seconds > config.budget.seconds:
            long = f"{step} and takes about {duration_text(step_seconds)}"
            return f"budget: {given}, but {long}; that one is trained ({_smaller(config)})"
        return f"budget: {given}; {step}, about {count_text(seconds / step_seconds)} steps{left} at {speed}"
    tokens, steps = config.token_budget() or 0, config.total_steps() or 1
    time = f"about {duration_text((1 - share_done) * steps * step_seconds)}{left} at {speed}"
    ratio = config.budget.tokens_per_param
    given = f"{tokens:,} tokens" + (f" ({ratio:g} per parameter)" if ratio is not None else "")
    if tokens < config.train.tokens_per_step:
        return f"budget: {given}, but {step}; that one is trained, {time} ({_smaller(config)})"
    return f"budget: {given}; {step}, {steps:,} in all: {time}"


def _smaller(config: RunConfig) -> str:
    return f"train.batch_size is {config.train.batch_size}; for smaller steps: --set train.batch_size=N"


def chosen_text(config: RunConfig, asked: RunConfig) -> str:
    """Return a sentence on the batch sizes that were chosen because `asked` does not set them; '' if it sets both."""
    names = [
        name
        for name in ("batch_size", "micro_batch_size")
        if getattr(asked.train, name) is None and getattr(config.train, name) is not None
    ]
    sizes = " and ".join(f"train.{name}={getattr(config.train, name)}" for name in names)
    return f"chosen for this model, budget and memory: {sizes}" if sizes else ""


def require_short(config: RunConfig, step_seconds: float, longest: float) -> None:
    """Refuse a default budget that would take long.

    Raises:
        ConfigError: it takes more than `longest` seconds.
    """
    seconds = (config.total_steps() or 0) * step_seconds
    if seconds > longest:
        raise ConfigError(
            f"no budget was given, and the usual one ({config.token_budget():,} tokens, 100 per parameter) would take "
            f"about {duration_text(seconds)} here; give one, such as --seconds 600, --tokens 5M or "
            f"--tokens-per-param 100"
        )
