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

__all__ = ["Sampler", "draw_together"]

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
        own, uniform = self._penalize(logits), self._uniform
        ids = ops.argmax(own) if uniform is None else choose(own, self.options, next(uniform)[self._rows])
        self._see(ids)
        return ids

    def keep(self, places: list[int]) -> None:
        """Draw from now on for the sequences at `places` of those there are, each with its own numbers."""
        self._rows = self._rows[places]
        if self._seen is not None:
            self._seen = self._seen[places]

    @property
    def _kind(self) -> tuple[float, int | None, float | None, float | None] | None:
        """What samplers have in common that draw in one go; None: they take the likeliest."""
        how = self.options
        return None if self._uniform is None else (how.temperature, how.top_k, how.top_p, how.min_p)

    def _penalize(self, logits: Tensor) -> Tensor:
        return logits if self._seen is None else penalized(logits, self._seen, self.options.repetition_penalty)

    def _see(self, ids: Tensor) -> None:
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)


def draw_together(samplers: list[Sampler], logits: Tensor) -> Tensor:
    """Next token ids (batch,) int64 of the sequences of all `samplers`, one behind the other; each as it draws alone.

    Samplers with the same options, but for the repetition penalty and the seed, cost as much as one.
    """
    if len(samplers) == 1:
        return samplers[0].draw(logits)
    rows = logits.split([len(sampler._rows) for sampler in samplers])
    places = torch.arange(len(logits), device=logits.device).split([len(each) for each in rows])
    kinds: dict[object, list[int]] = {}
    for number, sampler in enumerate(samplers):
        kinds.setdefault(sampler._kind, []).append(number)
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for numbers in kinds.values():
        alike = [samplers[number] for number in numbers]
        own = torch.cat([each._penalize(rows[number]) for number, each in zip(numbers, alike, strict=True)])
        drawn = [next(each._uniform)[each._rows] for each in alike if each._uniform is not None]
        found = choose(own, alike[0].options, torch.cat(drawn)) if drawn else ops.argmax(own)
        for number, part in zip(numbers, found.split([len(rows[n]) for n in numbers]), strict=True):
            samplers[number]._see(part)
        ids[torch.cat([places[number] for number in numbers])] = found
    return ids


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
