"""Loss over validation tokens: each one but the first is predicted once, in windows, by one process or several."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from questlm.data import TokenStream, windows
from questlm.data.loader import batch_count
from questlm.errors import DataError
from questlm.parallel import Processes
from questlm.progress import progress

__all__ = ["Evaluation", "evaluate"]

_TOKENS_PER_BATCH = 4096
_ALONE = Processes()


@dataclass(frozen=True)
class Evaluation:
    """The measures that `evaluate` returns.

    Attributes:
        loss: mean cross-entropy, nats a predicted token.
        perplexity: exp(loss).
        bits_per_byte: total cross-entropy in bits over the UTF-8 bytes of the text; None where the bytes are unknown.
            The bits of end-of-text tokens count, though these have no bytes: predicting where a document ends is part
            of the task.
        tokens: number of predicted tokens.
        text_bits_per_byte: the same without the bits of end-of-text tokens.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    text_bits_per_byte: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Return the measures by name, for records."""
        return {item.name: getattr(self, item.name) for item in fields(Evaluation)}


@torch.no_grad()
def evaluate(
    logits: Callable[[Tensor], Tensor],
    stream: TokenStream,
    seq_len: int,
    text_bytes: int | None = None,
    end_of_text: int | None = None,
    max_tokens: int | None = None,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
    processes: Processes = _ALONE,
) -> Evaluation:
    """Measure the cross-entropy of a model on all tokens of `stream`.

    Args:
        logits: the model, a function from ids (batch, tokens) int64 to (batch, tokens, vocabulary).
        stream: tokens to predict, every one but the first.
        seq_len: window length; each window starts with no context.
        text_bytes: UTF-8 bytes of the whole stream's text, for bits per byte. They include those of the first token,
            which is not predicted; beyond some thousand tokens the difference is too small to see. Not used with
            `max_tokens`, because a part of the stream has other bytes.
        end_of_text: id of the token that ends a document, None where there is none.
        max_tokens: read only the first windows, at most this many tokens; None: everything.
        processes: the processes that share the work; all call it, and all get the result.

    Raises:
        DataError: the stream has no token to predict.
    """
    batch_size = max(1, _TOKENS_PER_BATCH // seq_len)
    total = torch.zeros(3, dtype=torch.float64, device=device)  # nats, tokens, nats of ends of documents
    expected = min(len(stream) - 1, max_tokens or len(stream))
    with progress("evaluating", expected, show=show_progress and processes.is_main) as update:
        count = calls = 0
        for batch in windows(stream, seq_len, batch_size, max_tokens, processes.rank, processes.world_size):
            inputs, targets = (torch.from_numpy(part).to(device) for part in batch)
            flat = targets.flatten()
            scores = logits(inputs).flatten(0, 1).float()
            nats = F.cross_entropy(scores, flat, reduction="sum").double()
            # Computed on the CPU, where the targets come from, so that a GPU does not have to synchronise.
            ends = torch.from_numpy(np.flatnonzero(batch[1].ravel() == end_of_text)).to(device)
            of_ends = F.cross_entropy(scores[ends], flat[ends], reduction="sum").double()
            count += flat.numel()
            total += torch.stack((nats, torch.full_like(nats, flat.numel()), of_ends))
            calls += 1
            update(count * processes.world_size)
    if calls < -(-batch_count(stream, seq_len, batch_size, max_tokens) // processes.world_size):
        # Other processes have one batch more, and a forward pass of a sharded model needs all processes.
        logits(torch.zeros(1, 1, dtype=torch.int64, device=device))
    nats, tokens, of_ends = processes.sum(total).tolist()
    count = round(tokens)
    if count == 0:
        raise DataError("the text to evaluate on has no token to predict; use more text")
    loss = nats / count
    per_byte = text_per_byte = None
    if text_bytes and max_tokens is None:
        per_byte, text_per_byte = (bits / math.log(2) / text_bytes for bits in (nats, nats - of_ends))
    return Evaluation(loss, math.exp(min(loss, 700.0)), per_byte, count, text_per_byte)
