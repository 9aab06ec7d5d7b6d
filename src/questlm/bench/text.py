"""How fast a packed model writes, beside the same Llama in float32 on the same tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from questlm.bench.models import float_model
from questlm.config import GenerationOptions
from questlm.errors import ConfigError
from questlm.inference import PackedModel
from questlm.models import KVCache, Llama
from questlm.progress import progress

__all__ = ["TextSpeed", "text_speed"]


@dataclass(frozen=True)
class TextSpeed:
    """Medians over the rounds.

    Attributes:
        first_token_seconds: to read the prompt and choose the first token.
        tokens_per_second: from the first token to the last.
    """

    first_token_seconds: float
    tokens_per_second: float


def text_speed(
    model: PackedModel, prompt: str | list[int], tokens: int = 64, rounds: int = 3
) -> tuple[TextSpeed, TextSpeed]:
    """Time a packed model and the same Llama in float32 with PyTorch, in turn, on the CPU.

    The packed model generates greedily by `stream_ids`, as for any user. The float model has random weights, and reads
    the same prompt and the tokens that the packed one chose. Each runs once beforehand, which is not counted.

    Args:
        tokens: to generate, at least 2.
        rounds: turns of each.

    Raises:
        ConfigError: fewer than two tokens, no round, or too little memory for the float model.
    """
    if tokens < 2 or rounds < 1:
        raise ConfigError(f"tokens = {tokens}, rounds = {rounds}: give at least 2 tokens and 1 round")
    ids = model.encode(prompt) if isinstance(prompt, str) else prompt
    options = GenerationOptions(max_new_tokens=tokens, temperature=0, stop_at_end=False)
    chosen = list(model.stream_ids(ids, options))
    dense = float_model(model.config)
    found: list[tuple[TextSpeed, TextSpeed]] = []
    with progress("measuring the speed", rounds + 1) as update:
        for done in range(rounds + 1):
            update(done)
            found.append((_timed(model.stream_ids(ids, options)), _timed(_read(dense, ids, chosen))))
    packed, floats = zip(*found[1:], strict=True)
    return _median(packed), _median(floats)


def _read(model: Llama, prompt: list[int], chosen: list[int]) -> Iterator[int]:
    """The likeliest token behind the prompt, and behind each of `chosen` but the last."""
    cache = KVCache(model.config, 1, len(prompt) + len(chosen), torch.float32, "cpu")
    for ids in (prompt, *([token] for token in chosen[:-1])):
        with torch.inference_mode():
            yield int(model.next_logits(torch.tensor([ids]), cache).argmax())


def _timed(tokens: Iterator[int]) -> TextSpeed:
    begin = time.perf_counter()
    times = [time.perf_counter() for _ in tokens]
    return TextSpeed(times[0] - begin, (len(times) - 1) / (times[-1] - times[0]))


def _median(found: tuple[TextSpeed, ...]) -> TextSpeed:
    return TextSpeed(
        statistics.median(each.first_token_seconds for each in found),
        statistics.median(each.tokens_per_second for each in found),
    )
