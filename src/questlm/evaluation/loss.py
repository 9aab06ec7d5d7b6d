"""Loss over a validation split: every target predicted once, in windows read in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from questlm.data import TokenStream, windows
from questlm.errors import DataError
from questlm.progress import progress

__all__ = ["Evaluation", "evaluate"]

_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        loss: mean cross-entropy, nats a predicted token.
        perplexity: exp(loss).
        bits_per_byte: total cross-entropy in bits over the true UTF-8 bytes of the text; None where they are unknown.
        tokens: number of predicted tokens.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int

    def as_dict(self) -> dict[str, float | None]:
        """For records."""
        return asdict(self)


@torch.no_grad()
def evaluate(
    logits: Callable[[Tensor], Tensor],
    stream: TokenStream,
    seq_len: int,
    text_bytes: int | None = None,
    max_tokens: int | None = None,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
) -> Evaluation:
    """Measure `logits`: ids (batch, tokens) int64 -> (batch, tokens, vocabulary) on `stream`.

    Args:
        seq_len: window length; each window starts with no context.
        text_bytes: UTF-8 bytes of the whole stream's text, for bits per byte. (The first token's are among them though
            nothing predicts it, which is too little to see beyond some thousand tokens.) Not used with `max_tokens`,
            because a part of the stream has other bytes.
        max_tokens: read only the first windows, at most this many tokens; None: everything.
    """
    batch_size = max(1, _TOKENS_PER_BATCH // seq_len)
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    expected = min(len(stream) - 1, max_tokens or len(stream))
    with progress("evaluating", expected, show=show_progress) as update:
        for inputs, targets in windows(stream, seq_len, batch_size, max_tokens):
            predicted = logits(torch.from_numpy(inputs).to(device))
            flat = torch.from_numpy(targets).to(device).flatten()
            total += F.cross_entropy(predicted.flatten(0, 1).float(), flat, reduction="sum").double()
            count += flat.numel()
            update(count)
    if count == 0:
        raise DataError("the text to evaluate on has no token to predict; use more text")
    nats = float(total)
    loss = nats / count
    per_byte = nats / math.log(2) / text_bytes if text_bytes and max_tokens is None else None
    return Evaluation(loss, math.exp(min(loss, 700.0)), per_byte, count)
