"""A batch of sequences that join and leave it between steps, each in its own place of its text and with own options.

A step reads the weights once for all sequences. It takes one token of each sequence that is being continued and, of the
prompts that are still being read, `PROMPT_TOKENS` tokens in all (at least one of each), shared evenly: so a long prompt
delays a step of the others by no more than that, and a short prompt behind it is read soon.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from questlm import ops
from questlm.config import GenerationOptions
from questlm.errors import ConfigError
from questlm.inference.generate import NextLogits
from questlm.inference.sampling import Sampler, draw_together
from questlm.models import KVCache

__all__ = ["PROMPT_TOKENS", "RunningBatch", "Sequence"]

PROMPT_TOKENS = 128
_FIRST_CAPACITY = 256


@dataclass(eq=False)
class Sequence:
    """A text on its way.

    Attributes:
        pending: token ids that are not in the cache yet: the rest of the prompt, or the token drawn last.
        length: how many tokens the cache holds.
        sampler: draws its tokens; None before the first.
    """

    prompt: list[int]
    options: GenerationOptions
    pending: list[int]
    length: int = 0
    sampler: Sampler | None = field(default=None, repr=False)


class RunningBatch:
    """Computes the next tokens of up to `limit` sequences; `questlm.inference.PackedModel.running_batch` makes one.

    A sequence gets the tokens that `PackedModel.generate_ids` gives for its prompt and options, alone or among others,
    up to ties. Not to be used by two threads at once.

    Attributes:
        limit: most sequences at once.

    Args:
        forward: called to make what computes logits, anew whenever sequences have joined or left: steps that were
            recorded as a CUDA graph belong to one set of sequences.
        cache: called with a number of sequences and of tokens to make an empty cache for them.
        context: most tokens of a sequence, prompt and text; memory grows up to it as sequences need.

    Raises:
        ConfigError: the device has no memory for keys and values.
    """

    def __init__(
        self, forward: Callable[[], NextLogits], cache: Callable[[int, int], KVCache], limit: int, context: int
    ) -> None:
        self.limit, self.context = limit, context
        self._make_forward, self._make_cache = forward, cache
        self._sequences: list[Sequence] = []
        self._forward: NextLogits | None = None
        self._cache = self._empty_cache()

    def __len__(self) -> int:
        """How many sequences there are."""
        return len(self._sequences)

    def add(self, prompt: list[int], options: GenerationOptions) -> Sequence:
        """Let a sequence join, to go on behind `prompt`, of at least one token id; limits are the caller's to keep.

        Raises:
            ValueError: there are `limit` sequences already, or the prompt has no tokens or more than `context`.
        """
        if len(self._sequences) == self.limit:
            raise ValueError(f"there are {self.limit} sequences already, as many as there may be")
        if not 0 < len(prompt) <= self.context:
            raise ValueError(f"a prompt has 1 to {self.context} tokens, not {len(prompt)}")
        self._cache.add()
        self._forward = None
        self._sequences.append(Sequence(prompt, options, list(prompt)))
        return self._sequences[-1]

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence leave; the last one takes its place in memory. ValueError where it is not there."""
        place, last = self._sequences.index(sequence), self._sequences.pop()
        places = list(range(len(self._sequences)))
        if last is not sequence:
            self._sequences[place] = last
            places[place] = len(places)
        self._forward = None
        if not places and self._cache.capacity > min(_FIRST_CAPACITY, self._capacity_limit):
            with suppress(ConfigError):  # where there is no memory for a small cache beside it, the large one stays
                self._cache = self._empty_cache()  # gives back the memory that long sequences needed
                return
        with torch.inference_mode():
            self._cache.limit_length(self._longest())
            self._cache.keep(places)

    def step(self) -> list[tuple[Sequence, int | None]]:
        """Compute one step: each sequence that has a next token, and that token; None: its logits are not finite.

        Sequences whose prompt is still being read have none yet. One that has ended has to be removed by the caller.

        Raises:
            ConfigError: the device has no memory for the keys and values of so many tokens; nothing has changed.
            ValueError: a sequence has as many tokens as `context` allows.
        """
        sequences, counts = self._sequences, self._counts()
        if not sequences:
            return []
        with torch.inference_mode():
            logits = self._logits(counts)
            rows = []
            for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
                sequence.length += count
                del sequence.pending[:count]
                if not sequence.pending:
                    rows.append(row)
            finite = [True] * len(sequences)
            if not ops.all_finite(logits):
                finite = logits.isfinite().all(-1).tolist()
                self._cache.erase_non_finite()
            return self._draw([row for row in rows if finite[row]], logits) + [
                (sequences[row], None) for row in rows if not finite[row]
            ]

    def _logits(self, counts: list[int]) -> Tensor:
        """Logits (sequences, vocab_size) behind the next `counts` pending tokens of each."""
        sequences, columns, cache = self._sequences, max(counts), self._cache
        longest = self._longest()
        if max(sequence.length + count for sequence, count in zip(sequences, counts, strict=True)) > self.context:
            raise ValueError(f"a sequence has {self.context} tokens already, as many as there may be")
        cache.limit_length(longest)
        # padding is stored behind each sequence, so there must be room for the widest step behind the longest
        if longest + columns > cache.capacity:
            cache.reserve(min(max(2 * cache.capacity, longest + columns), self._capacity_limit), self.limit)
        ids = torch.zeros(len(sequences), columns, dtype=torch.int64)
        for row, sequence, count in zip(ids, sequences, counts, strict=True):
            row[:count] = torch.tensor(sequence.pending[:count], dtype=torch.int64)
        device = cache.lengths.device
        ragged = torch.tensor(counts, device=device) if min(counts) < columns else None
        if self._forward is None:
            self._forward = self._make_forward()
        return self._forward(ids.to(device), cache, ragged)

    def _counts(self) -> list[int]:
        """How many tokens of each sequence the next step takes: one, or of a prompt its share."""
        counts = [1 if sequence.length >= len(sequence.prompt) else 0 for sequence in self._sequences]
        reading = [row for row, count in enumerate(counts) if not count]
        reading.sort(key=lambda row: len(self._sequences[row].pending))  # what the short ones leave is for the others
        left = PROMPT_TOKENS
        for number, row in enumerate(reading):
            share = max(1, left // (len(reading) - number))
            counts[row] = min(share, len(self._sequences[row].pending))
            left -= counts[row]
        return counts

    def _draw(self, rows: list[int], logits: Tensor) -> list[tuple[Sequence, int | None]]:
        """The next token of the sequences `rows`."""
        drawing = [self._sequences[row] for row in rows]
        if not drawing:
            return []
        samplers = [each.sampler or self._sampler(each, logits) for each in drawing]
        own = logits if len(rows) == len(logits) else logits[rows]
        tokens: list[int] = draw_together(samplers, own).tolist()
        for sequence, sampler, token in zip(drawing, samplers, tokens, strict=True):
            sequence.sampler, sequence.pending = sampler, [token]
        return list(zip(drawing, tokens, strict=True))

    def _sampler(self, sequence: Sequence, logits: Tensor) -> Sampler:
        return Sampler(sequence.options, [sequence.prompt], logits.shape[-1], logits.device)

    def _longest(self) -> int:
        return max((sequence.length for sequence in self._sequences), default=0)

    @property
    def _capacity_limit(self) -> int:
        return self.context + PROMPT_TOKENS

    def _empty_cache(self) -> KVCache:
        cache = self._make_cache(self.limit, min(_FIRST_CAPACITY, self._capacity_limit))
        cache.keep([])
        return cache
