"""Choosing the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from questlm.errors import ConfigError, quoted

__all__ = ["Sampling", "sample"]


@dataclass(frozen=True)
class Sampling:
    """How to choose: `temperature` 0 takes the likeliest token, else draw among the `top_k` likeliest (None: all)
    and, of those, the fewest that hold `top_p` of their probability (None: all).

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature = {quoted(self.temperature)}; it must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k = {quoted(self.top_k)}; it must be at least 1, or None for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {quoted(self.top_p)}; it must be above 0 and at most 1, or None for no limit")


def sample(logits: Tensor, how: Sampling, generator: torch.Generator) -> int:
    """Draw a token id from `logits` (vocab_size,), which must be finite. `generator` is of the CPU.

    Computed in float64 on the CPU, so that a seed means the same on every device.
    """
    limit = 1 if how.temperature == 0 else min(how.top_k or len(logits), len(logits))
    values, ids = logits.to("cpu", torch.float64).topk(limit)  # sorted, likeliest first
    if limit == 1:
        return int(ids)
    probabilities = torch.softmax((values - values[0]) / how.temperature, dim=0)
    if how.top_p is not None:
        probabilities = probabilities[: nucleus(probabilities, how.top_p)]
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def nucleus(probabilities: Tensor, top_p: float) -> int:
    """Length of the shortest prefix of `probabilities` (n,), sorted downwards, that sums to `top_p`; at least 1."""
    before = probabilities.cumsum(0) - probabilities
    return max(1, int((before < top_p).sum()))
