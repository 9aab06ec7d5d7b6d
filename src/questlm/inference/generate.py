"""The loop that appends a token to each sequence of a batch, step by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from questlm import ops
from questlm.config import GenerationOptions
from questlm.errors import ArtifactError
from questlm.inference.sampling import Sampler
from questlm.models import KVCache

__all__ = ["NextLogits", "generate_tokens"]

NextLogits = Callable[[Tensor, KVCache, Tensor | None], Tensor]
"""`questlm.models.Llama.next_logits`: ids, cache and counts -> logits (batch, vocab_size)."""

_PREFILL_TOKENS = 512  # of each sequence at once; bounds the memory of a long prompt's activations


def generate_tokens(
    next_logits: NextLogits,
    cache: KVCache,
    prompts: list[list[int]],
    options: GenerationOptions,
    running: Collection[int],
) -> Iterator[list[tuple[int, int]]]:
    """Row and next token id of the prompts that are computed, `max_new_tokens` times.

    On a GPU the next step is launched before the ids of this one are read, so that the GPU never waits for the CPU.

    Args:
        cache: an empty one with room for the longest prompt; it doubles when it is full.
        prompts: token ids, at least one each.
        running: rows that are still wanted. The caller takes out those that have ended, and leaves when none is left;
            before each step the others are dropped from the batch. On a GPU the step that is under way has them still.

    Raises:
        ArtifactError: logits that are not finite.
        ConfigError: the device has no memory for the keys and values of so many tokens.
    """
    device, longest, rows = cache.lengths.device, max(map(len, prompts)), list(range(len(prompts)))
    # Not a decorator of the whole: torch's cannot close a generator that is left unfinished when Python ends.
    with torch.inference_mode():
        logits = _prefill(next_logits, cache, prompts)
    sampler = Sampler(options, prompts, logits.shape[-1], device)
    for step in range(options.max_new_tokens):
        with torch.inference_mode():
            ids = sampler.draw(logits)
            readback, drawn = _Readback(ids, logits), rows
        if device.type == "cpu":
            yield list(zip(drawn, readback.ids(), strict=True))  # before the next step: it may not be wanted
        if step + 1 < options.max_new_tokens:
            if longest + step + 1 > cache.capacity:
                cache.reserve(min(2 * cache.capacity, longest + options.max_new_tokens))
            with torch.inference_mode():
                wanted = [place for place, row in enumerate(rows) if row in running]
                if len(wanted) < len(rows):
                    rows, ids = [rows[place] for place in wanted], ids[wanted]
                    cache.keep(wanted)
                    sampler.keep(wanted)
                logits = next_logits(ids[:, None], cache, None)
        if device.type != "cpu":
            yield list(zip(drawn, readback.ids(), strict=True))


def _prefill(next_logits: NextLogits, cache: KVCache, prompts: list[list[int]]) -> Tensor:
    """Logits (batch, vocab_size) behind each prompt. Prompts go in by chunks, and all end in the last chunk."""
    device = cache.lengths.device
    longest = max(map(len, prompts))
    for left in range(_PREFILL_TOKENS * ((longest - 1) // _PREFILL_TOKENS), -1, -_PREFILL_TOKENS):
        chunks = [
            prompt[max(0, len(prompt) - left - _PREFILL_TOKENS) : max(0, len(prompt) - left)] for prompt in prompts
        ]
        counts = [len(chunk) for chunk in chunks]
        ids = torch.zeros(len(prompts), max(counts), dtype=torch.int64)
        for row, chunk in zip(ids, chunks, strict=True):
            row[: len(chunk)] = torch.tensor(chunk, dtype=torch.int64)
        ragged = torch.tensor(counts, device=device) if len(set(counts)) > 1 else None
        logits = next_logits(ids.to(device), cache, ragged)
    return logits


class _Readback:
    """Ids on their way from the device to the CPU, -1 where the logits were not finite."""

    def __init__(self, ids: Tensor, logits: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not logits.is_cuda and ops.all_finite(logits):
            self._ids = ids
            return
        marked = torch.where(torch.isfinite(logits).all(-1), ids, -1)
        if marked.is_cuda:
            self._ids = torch.empty(marked.shape, dtype=marked.dtype, pin_memory=True)
            self._ids.copy_(marked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._ids = marked.cpu()

    def ids(self) -> list[int]:
        """Wait for this copy, and for nothing launched after it."""
        if self._event is not None:
            self._event.synchronize()
        ids: list[int] = self._ids.tolist()
        if min(ids) < 0:
            raise ArtifactError("the model gave logits that are not finite; its weights are out of any sensible range")
        return ids
