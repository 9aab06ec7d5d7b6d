"""The loss of each token of a text, in windows that may overlap, and bits per byte of each document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from questlm.data import TokenStream
from questlm.errors import ConfigError, DataError
from questlm.evaluation.accuracy import Estimate, mean
from questlm.evaluation.loss import Evaluation
from questlm.progress import progress

__all__ = ["Document", "documents_of", "mean_bits_per_byte", "summed", "token_nats"]

_TOKENS_PER_BATCH = 4096


class Document(NamedTuple):
    """A document: its predicted tokens without the one that ends it, its UTF-8 bytes, and its bits per byte."""

    tokens: int
    bytes: int
    bits_per_byte: float


@torch.no_grad()
def token_nats(
    logits: Callable[[Tensor], Tensor],
    stream: TokenStream,
    seq_len: int,
    stride: int,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
) -> NDArray[np.float32]:
    """Cross-entropy of each token of `stream` but the first, (tokens - 1,) nats.

    Windows of `seq_len` tokens begin every `stride` tokens, and of each the last `stride` tokens count, of the first
    window all. So a token is predicted from at least seq_len - stride tokens before it, where there are as many; with a
    stride of `seq_len` the windows do not overlap, as in `evaluate`.

    Raises:
        ConfigError: a stride below 1 or above `seq_len`.
        DataError: the stream has no token to predict.
    """
    if not 1 <= stride <= seq_len:
        raise ConfigError(
            f"stride {stride} cannot be used: it is at least 1 and at most the window of {seq_len} tokens"
        )
    count = len(stream) - 1
    if count < 1:
        raise DataError("the text to evaluate on has no token to predict; use more text")
    found = np.empty(count, dtype=np.float32)
    with progress("evaluating", count, show=show_progress) as update:
        done = 0
        for starts, width in _batches(count, seq_len, stride):
            rows = np.stack([stream.read(start, start + width + 1) for start in starts])
            ids = torch.from_numpy(rows).to(device)
            scores = logits(ids[:, :-1]).transpose(1, 2).float()
            nats = F.cross_entropy(scores, ids[:, 1:], reduction="none").cpu().numpy()
            for start, row in zip(starts, nats, strict=True):
                found[done : start + width] = row[done - start :]
                done = start + width
            update(done)
    return found


def _batches(count: int, seq_len: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Where windows begin that together predict `count` tokens, and how many each predicts; only the last has fewer."""
    size = max(1, _TOKENS_PER_BATCH // seq_len)
    windows = 1 + max(0, -(-(count - seq_len) // stride))
    whole = windows if (windows - 1) * stride + seq_len <= count else windows - 1
    starts = [number * stride for number in range(windows)]
    for first in range(0, whole, size):
        yield starts[first : min(first + size, whole)], seq_len
    if whole < windows:
        yield starts[-1:], count - starts[-1]


def summed(nats: NDArray[np.float32], ids: NDArray[np.int64], text_bytes: int | None, end: int | None) -> Evaluation:
    """The measures of a whole text from the nats of its predicted tokens `ids`, as `evaluate` defines them."""
    total = math.fsum(nats)
    of_text = total - math.fsum(nats[ids == (-1 if end is None else end)])
    per_byte = [None if not text_bytes else each / math.log(2) / text_bytes for each in (total, of_text)]
    loss = total / len(nats)
    return Evaluation(loss, math.exp(min(loss, 700.0)), per_byte[0], len(nats), per_byte[1])


def documents_of(
    nats: NDArray[np.float32], tokens: NDArray[np.int64], sizes: Sequence[int], end: int
) -> tuple[Document, ...]:
    """The documents of a text, but for those without bytes or without a predicted token.

    The first token of the text is not predicted, so a first document of one token is left out.

    Args:
        nats: of each token but the first.
        tokens: of the whole text.
        sizes: UTF-8 bytes of each document.
        end: the token that ends a document.
    """
    ends = tokens == end
    number = np.cumsum(ends) - ends
    predicted = ~ends
    predicted[0] = False
    counts = np.bincount(number, predicted, len(sizes))
    sums = np.bincount(number, np.append(0.0, nats) * predicted, len(sizes))
    return tuple(
        Document(int(count), size, float(total) / math.log(2) / size)
        for count, total, size in zip(counts, sums, sizes, strict=True)
        if size and count
    )


def mean_bits_per_byte(documents: Sequence[Document]) -> Estimate | None:
    """Return the mean over documents, each counted once, with its 95 % interval; None for fewer than two documents."""
    return mean(np.array([document.bits_per_byte for document in documents]))
