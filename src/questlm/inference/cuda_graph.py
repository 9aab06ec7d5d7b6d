"""Steps of decoding on a GPU, recorded as a CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from questlm.models import KVCache

__all__ = ["RecordedLogits"]


class RecordedLogits:
    """`next_logits` whose steps of one token a sequence are recorded, and replayed as long as shapes stay.

    Of each shape the first step runs plainly, in which libraries and kernels set themselves up, and the second is
    recorded. Everything else, and everything on a CPU, is passed on. One object serves one cache, and the logits of a
    replayed step are overwritten by the next.

    Args:
        next_logits: `questlm.models.Llama.next_logits`, or what computes the same.
    """

    def __init__(self, next_logits: Callable[[Tensor, KVCache, Tensor | None], Tensor]) -> None:
        self._next_logits = next_logits
        self._shape: tuple[int, int] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids = self._logits = torch.empty(0)

    def __call__(self, ids: Tensor, cache: KVCache, counts: Tensor | None) -> Tensor:
        """Logits (batch, vocab_size) of the token that follows `ids` (batch, tokens)."""
        if not ids.is_cuda or ids.shape[1] != 1 or counts is not None:
            return self._next_logits(ids, cache, counts)
        shape = len(ids), cache.capacity
        if shape != self._shape:  # the cache may lie elsewhere, too
            self._shape, self._graph = shape, None
            cache.window = cache.capacity  # so that every step has the same shapes
            return self._next_logits(ids, cache, counts)
        if self._graph is None:
            self._ids, graph = ids.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._logits = self._next_logits(self._ids, cache, None)
            self._graph = graph  # recording has counted the step and computed nothing
        else:
            cache.check_room(len(ids), 1)
            cache.count_recorded(1)
            self._ids.copy_(ids)
        self._graph.replay()
        return self._logits
