"""Data-parallel training of whole models: gradients are averaged in place, while the backward pass goes on.

Parameters are put into buckets, the last ones first, as the backward pass reaches them. As soon as all gradients of a
bucket are there, one collective averages them where they lie. DDP does this too, but copies every gradient into a
buffer first, which costs a pass over the memory and 4 bytes a parameter; it looks at its own timers between steps, so a
step cannot be recorded as a CUDA graph from its first iterations; and it cuts compiled blocks at its bucket's edges.

Buckets are sent in one order on all processes, whatever the order in which gradients become ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Replicas"]


class _Sent(NamedTuple):
    """Gradients on their way: the tensors that travel, and the gradients that take the result if they differ."""

    work: Any
    travelling: list[Tensor]
    gradients: list[Tensor]


class Replicas(nn.Module):
    """Calls a model that each process has whole; gradients are averaged over processes inside `exchanging()`.

    Args:
        model: becomes that of the group's first process.
        group: the processes.
        bucket_bytes: size of gradients that are exchanged together; a larger gradient goes alone.
        dtype: in which gradients travel, if not in their own.
    """

    def __init__(
        self, model: nn.Module, group: dist.ProcessGroup, bucket_bytes: float, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.model, self._group, self._dtype = model, group, dtype
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), group=group, group_src=0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buckets = _buckets(trained[::-1], bucket_bytes)
        for index, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(self._mark_ready, index))
        self._missing: list[int] | None = None  # gradients that each bucket waits for; None: nothing is exchanged
        self._sent: list[_Sent] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Average the gradients of the one backward pass inside the block; they are complete when it ends."""
        self._missing = [len(bucket) for bucket in self._buckets]
        try:
            yield
            while len(self._sent) < len(self._buckets):  # a parameter that took no part has no gradient
                self._send()
            for sent in self._sent:
                self._receive(sent)
        finally:
            self._missing, self._sent = None, []

    def _mark_ready(self, index: int, parameter: Tensor) -> None:
        if self._missing is None:
            return
        self._missing[index] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
        travelling = gradients if self._dtype is None else [gradient.to(self._dtype) for gradient in gradients]
        options = dist.AllreduceCoalescedOptions()
        options.reduceOp = dist.ReduceOp(dist.ReduceOp.AVG if _averages(bucket[0]) else dist.ReduceOp.SUM)
        work = self._group.allreduce_coalesced(travelling, options) if travelling else None
        self._sent.append(_Sent(work, travelling, gradients))

    @torch.no_grad()
    def _receive(self, sent: _Sent) -> None:
        if sent.work is None:
            return
        sent.work.wait()  # on a GPU its stream waits, and this process goes on
        for travelled, gradient in zip(sent.travelling, sent.gradients, strict=True):
            if travelled is not gradient:
                gradient.copy_(travelled)
            if not _averages(gradient):
                gradient.div_(self._group.size())


def _averages(tensor: Tensor) -> bool:
    """Whether the backend of the tensor's device averages; gloo only sums."""
    return tensor.is_cuda


def _buckets(parameters: Sequence[nn.Parameter], largest: float) -> list[list[nn.Parameter]]:
    """Parameters in their order, in lists of at most `largest` bytes and one dtype each."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size + parameter.nbytes > largest or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets
