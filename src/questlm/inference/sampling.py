"""Choose the next token of each sequence of a batch, on the device of the logits.

A sequence is drawn from with numbers of its own, fixed before its first token: number t decides token t. So its text
depends on its seed and its prompt, and not on the other sequences of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from questlm import ops
from questlm.config import GenerationOptions

__all__ = ["Sampler"]

_DRAWN_AT_ONCE = 256


class Sampler:
    """Draws one token for each of several sequences at a time.

    With a seed, sequence i of a batch is drawn with `seed + i`: a prompt given twice gets two texts, and each of them
    can be had alone.

    Args:
        prompts: token ids of each sequence.
        vocab_size: number of logits.
    """

    def __init__(
        self, options: GenerationOptions, prompts: list[list[int]], vocab_size: int, device: torch.device | str
    ) -> None:
        self.options = options
        self._rows = torch.arange(len(prompts), device=device)
        greedy = options.temperature == 0 or options.top_k == 1
        self._uniform = None if greedy else _uniform(options.seed, len(prompts), torch.device(device))
        self._seen: Tensor | None = None
        if options.repetition_penalty != 1:
            self._seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
            for seen, prompt in zip(self._seen, prompts, strict=True):
                seen[prompt] = True
            self._seen = self._seen.to(device)

    def draw(self, logits: Tensor) -> Tensor:
        """Next token ids (batch,) int64 by finite `logits` (batch, vocab_size)."""
        if self._seen is not None:
            logits = penalized(logits, self._seen, self.options.repetition_penalty)
        uniform = self._uniform
        ids = ops.argmax(logits) if uniform is None else choose(logits, self.options, next(uniform)[self._rows])
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)
        return ids

    def keep(self, places: list[int]) -> None:
        """Draw from now on for the sequences at `places` of those there are, each with its own numbers."""
        self._rows = self._rows[places]
        if self._seen is not None:
            self._seen = self._seen[places]


def penalized(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits where tokens that `seen` (batch, vocab_size) marks are less likely, or likelier for a penalty below 1."""
    logits = logits.float()
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: Tensor, options: GenerationOptions, uniform: Tensor) -> Tensor:
    """Token ids (batch,) that numbers `uniform` (batch,) in [0, 1) pick out of the allowed tokens' distribution.

    The distribution function of the tokens, likeliest first, is inverted. It is summed in float64: so an order of
    summation that a GPU chooses freely does not change the result.
    """
    vocab_size = logits.shape[-1]
    values, ids = logits.topk(min(options.top_k or vocab_size, vocab_size))
    values = values.double()
    probabilities = torch.softmax((values - values[:, :1]) / options.temperature, dim=-1)
    kept = allowed(probabilities, options.top_p, options.min_p)
    cumulative = (probabilities * kept).cumsum(-1)
    picked = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    picked = torch.minimum(picked, kept.sum(-1, keepdim=True) - 1)  # u times the sum can round up to the sum
    return ids.gather(-1, picked)[:, 0]


def allowed(probabilities: Tensor, top_p: float | None, min_p: float | None) -> Tensor:
    """Which of `probabilities` (batch, n), sorted downwards, may be drawn: some first ones, always the first (bool).

    What is not a number is allowed: the caller refuses such logits, and until then an index must be one.
    """
    kept = torch.ones_like(probabilities, dtype=torch.bool)
    if top_p is not None:
        kept &= ~(probabilities.cumsum(-1) - probabilities >= top_p)
    if min_p is not None:
        kept &= ~(probabilities < min_p * probabilities[:, :1])
    return kept


def _uniform(seed: int | None, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Without end: a number in [0, 1) for the next token of each sequence, (batch,) float64."""
    generators = [torch.Generator() for _ in range(batch)]
    for row, generator in enumerate(generators):
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed((seed + row) % 2**63)
    while True:
        rows = [torch.rand(_DRAWN_AT_ONCE, generator=each, dtype=torch.float64) for each in generators]
        yield from torch.stack(rows, dim=1).to(device)
