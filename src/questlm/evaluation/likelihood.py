"""How likely a model finds given continuations of given texts, many at a time.

Texts are batched by length. A text that several continuations follow is computed once: its keys and values stay in the
cache while one continuation after another is tried behind it. Logits are computed only where a token is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from questlm.errors import DataError, quoted
from questlm.models import KVCache
from questlm.progress import progress

__all__ = ["CachedModel", "Likelihood", "Request", "encode_pair", "log_likelihoods"]

_TOKENS_PER_BATCH = 8192
_LOGITS_PER_BATCH = 2**26
_CONTINUATIONS_PER_GROUP = 8  # a group's are scored one after another, so more wait while the rows of others idle


class CachedModel(Protocol):
    """A model that continues what a cache holds: `Llama` and `PackedModel` are such."""

    def __call__(self, ids: Tensor, cache: KVCache) -> Any:
        """Logits (batch, tokens, vocab_size) of ids (batch, tokens)."""

    def next_logits(self, ids: Tensor, cache: KVCache, counts: Tensor | None = None) -> Tensor:
        """Logits (batch, vocab_size) behind the first `counts` (batch,) of each row's ids."""

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache on the device of the model."""


class Request(NamedTuple):
    """Token ids of a text and of a continuation, neither of them empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """Log probability of a continuation in nats, and whether each of its tokens is the likeliest in its place."""

    nats: float
    greedy: bool


@dataclass(frozen=True)
class _Group:
    """The continuations of one text, longest first, with the places of their requests."""

    context: tuple[int, ...]
    members: list[tuple[int, tuple[int, ...]]]

    @property
    def longest(self) -> int:
        return len(self.members[0][1])


def encode_pair(
    encode: Callable[[str], list[int]], start: int | None, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Token ids of a text and its continuation, divided where lm-evaluation-harness divides them.

    Both are encoded together and cut behind as many tokens as the text alone has. Spaces at the end of the text belong
    to the continuation.

    Args:
        encode: text to ids, without special tokens.
        start: the token that stands for an empty text, None where there is none.

    Raises:
        DataError: no token is left to predict, or nothing to predict it from.
    """
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    if context:
        before = encode(context)
        after = encode(context + continuation)[len(before) :]
    else:
        before, after = [] if start is None else [start], encode(continuation)
    if not before or not after:
        raise DataError(
            f"the continuation {quoted(continuation)} of {quoted(context)} cannot be scored: the tokenizer gives "
            f"{len(before)} tokens before it and {len(after)} for it"
        )
    return before, after


@torch.no_grad()
def log_likelihoods(
    model: CachedModel, requests: Sequence[Request], max_tokens: int, vocab_size: int, show_progress: bool = True
) -> list[Likelihood]:
    """The likelihood of each request's continuation, in the order of the requests.

    Args:
        max_tokens: longest input of the model; of longer texts the end is read, as lm-evaluation-harness does.
        vocab_size: of the model; it bounds how many logits are computed at once.

    Raises:
        DataError: a continuation of more than `max_tokens` tokens.
    """
    found: list[Likelihood | None] = [None] * len(requests)
    with progress("scoring", len(requests), show=show_progress) as update:
        done = 0
        for batch in _batches(_grouped(requests, max_tokens), vocab_size):
            for place, likelihood in _score(model, batch):
                found[place] = likelihood
                done += 1
            update(done)
    return [each for each in found if each is not None]


def _grouped(requests: Sequence[Request], max_tokens: int) -> list[_Group]:
    """Requests by their text, as much of it as fits, the longest first."""
    by_context: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for place, (context, continuation) in enumerate(requests):
        if len(continuation) > max_tokens:
            raise DataError(
                f"a continuation of {len(continuation)} tokens cannot be scored: the model reads at most {max_tokens} "
                "at once; leave the item out, or read more at once (--seq-len)"
            )
        # The last token of a continuation is predicted and never read.
        room = max_tokens + 1 - len(continuation)
        by_context.setdefault(tuple(context[-room:]), []).append((place, tuple(continuation)))
    groups = []
    for text, members in by_context.items():
        members.sort(key=lambda each: -len(each[1]))
        starts = range(0, len(members), _CONTINUATIONS_PER_GROUP)
        groups += [_Group(text, members[start : start + _CONTINUATIONS_PER_GROUP]) for start in starts]
    return sorted(groups, key=lambda group: -(len(group.context) + group.longest))


def _batches(groups: list[_Group], vocab_size: int) -> Iterator[list[_Group]]:
    batch: list[_Group] = []
    for group in groups:
        room = max(len(each.context) for each in (*batch, group)) + max(each.longest for each in (*batch, group))
        logits = vocab_size * max(each.longest for each in (*batch, group))
        if batch and (len(batch) + 1) * max(room / _TOKENS_PER_BATCH, logits / _LOGITS_PER_BATCH) > 1:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _score(model: CachedModel, groups: list[_Group]) -> Iterator[tuple[int, Likelihood]]:
    """Place and likelihood of each request of a batch."""
    texts = [group.context for group in groups]
    longest = max(map(len, texts))
    cache = model.new_cache(len(groups), longest + max(group.longest for group in groups))
    counts = torch.tensor([len(text) for text in texts], device=cache.lengths.device)
    first = model.next_logits(_padded(texts, longest, cache), cache, counts)[:, None]
    for turn in range(max(len(group.members) for group in groups)):
        members = [group.members[turn] if turn < len(group.members) else (-1, ()) for group in groups]
        width = max(len(ids) for _, ids in members)
        targets = _padded([ids for _, ids in members], width, cache)
        logits = first
        if width > 1:
            logits = torch.cat((first, model(targets[:, :-1], cache)), dim=1)
            cache.forget(width - 1)
        real = torch.tensor([len(ids) for _, ids in members], device=targets.device)[:, None]
        padding = torch.arange(width, device=targets.device) >= real
        nats = -F.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none").masked_fill(padding, 0)
        greedy = ((logits.argmax(dim=-1) == targets) | padding).all(dim=1)
        sums = nats.double().sum(dim=1)
        for (place, _), total, likeliest in zip(members, sums.tolist(), greedy.tolist(), strict=True):
            if place >= 0:
                yield place, Likelihood(total, likeliest)


def _padded(rows: Sequence[Sequence[int]], width: int, cache: KVCache) -> Tensor:
    """Rows of ids (rows, width), filled up with zeros, where the cache is."""
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64)
    return ids.to(cache.lengths.device)
