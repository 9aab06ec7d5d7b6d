"""Muon: momentum whose matrices are made orthogonal before each step.

With gradient g of a matrix W of R rows and C columns, momentum buffer b and learning rate r, one step is

    b <- m b + (1 - m) g,    u = (1 - m) g + m b,    W <- (1 - r d) W - 0.2 r sqrt(max(R, C)) O(u)

with weight decay d. O(u) is U V^T of the singular value decomposition u = U S V^T, but with singular values near 1
instead of equal to 1: five Newton-Schulz iterations X <- a X + (b X X^T + c (X X^T)^2) X, which need only products
of matrices. The factor 0.2 sqrt(max(R, C)) gives the update the root mean square of an AdamW update, so that the
learning rate and the weight decay of AdamW are a good start (arXiv 2502.16982). This is the update of
`torch.optim.Muon` with adjust_lr_fn='match_rms_adamw'.

With `equal_rows` each row of O(u) is divided by its norm and multiplied by sqrt(C / R), the norm of the mean row, where
R > C. The columns of O(u) are then orthonormal, but its rows, each the update of one neuron, are not alike: some would
move much slower than others (arXiv 2510.05491 does this with a running mean of their norms). Where R <= C all rows of
O(u) have the norm 1 already.

Matrices of one shape are stacked and multiplied in one batch, since a small model has many small matrices; one that
is taller than wide is stacked transposed. Each pass over memory reads and writes an entry once, for all matrices of a
stack (`questlm.ops.momentum`), and a GPU computes only one half of the products that are symmetric
(`questlm.ops.symmetric`). Several processes share the matrices of a stack: each makes its share orthogonal and sends it
to the others. Where FSDP has sharded the matrices by rows, they are first gathered, in the 16 bits in which the
products are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from questlm import ops
from questlm.parallel import Processes, local_shard

__all__ = ["Muon", "orthogonalize"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Keller Jordan's Muon, as in torch.optim.Muon
_ITERATIONS = 5
_EPS = 1e-7
_LARGEST_STACK = 2**27
"""Entries of the largest stack. Its temporary tensors take about 12 bytes an entry."""

_ALONE = Processes()


def orthogonalize(matrices: Tensor) -> Tensor:
    """U S' V^T with S' near 1 of each matrix U S V^T, by Newton-Schulz iterations in the dtype of `matrices`.

    Args:
        matrices: (count, rows, columns), bfloat16 or wider.

    Returns:
        The same shape and dtype.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # The Frobenius norm is at least the largest singular value, which must not be above 1.
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        x = ops.odd_polynomial(x, a, b, c)
    return x.mT if tall else x


def equalize_rows(updates: Tensor, dim: int) -> None:
    """Give all rows of tall orthogonal matrices the norm of the mean row, sqrt(columns / rows), in place.

    Args:
        updates: (count, ...), each matrix or its transpose.
        dim: along which a row lies.
    """
    norms = torch.linalg.vector_norm(updates, dim=dim, keepdim=True, dtype=torch.float32)
    rows, columns = norms.shape[1] * norms.shape[2], updates.shape[dim]
    updates.mul_(((columns / rows) ** 0.5 / norms.clamp(min=_EPS)).to(updates.dtype))


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for matrices, (rows, columns) each.

    Args:
        groups: parameter groups with `params`, `weight_decay` and `lr_ratio`.
        lr: learning rate, as of AdamW.
        momentum: decay of the average of gradients.
        precision: dtype of the Newton-Schulz products; None: bfloat16 on a GPU and float32 on a CPU, where bfloat16
            is seldom faster.
        processes: the processes that train the model.
        equal_rows: give all rows of an update of a tall matrix one norm.
    """

    recordable = True

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        precision: torch.dtype | None = None,
        processes: Processes = _ALONE,
        equal_rows: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self.equal_rows, self.precision, self.processes = equal_rows, precision, processes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the matrices that have a gradient."""
        for group in self.param_groups:
            for stack in _stacks([parameter for parameter in group["params"] if parameter.grad is not None]):
                self._move(stack, group)

    def make_state(self) -> None:
        """Give every parameter the state it has before the first step, all zeros."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}

    def _move(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        sharded, (rows, columns) = isinstance(parameters[0], DTensor), parameters[0].shape
        weights, gradients, buffers = self._shards(parameters)
        precision = self.precision or (torch.bfloat16 if weights[0].is_cuda else torch.float32)
        updates = weights[0].new_empty((len(weights), *weights[0].shape), dtype=precision)
        ops.nesterov(gradients, buffers, group["momentum"], updates)
        updates = self._orthogonal(updates, sharded, rows).contiguous()
        if self.equal_rows:
            tall = sum(parameter.shape[0] > parameter.shape[1] for parameter in parameters)  # the last of a stack
            equalize_rows(updates[len(updates) - tall :], -1 if sharded else -2)
        ops.decayed_step(weights, updates, group["lr"], group["weight_decay"], 0.2 * max(rows, columns) ** 0.5)

    def _shards(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """This process's rows of the weights, gradients and momentum buffers; full matrices as wide ones."""
        shards: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            assert parameter.grad is not None
            transposed = not isinstance(parameter, DTensor) and parameter.shape[0] > parameter.shape[1]
            for found, tensor in zip(
                shards, (parameter, parameter.grad, self.state[parameter]["momentum"]), strict=True
            ):
                shard = local_shard(tensor)
                found.append(shard.mT if transposed else shard)
        return shards

    def _orthogonal(self, updates: Tensor, sharded: bool, rows: int) -> Tensor:
        """This process's rows of the orthogonal matrices, (count, rows here, columns)."""
        if self.processes.world_size == 1:
            return orthogonalize(updates)
        full = _gathered_rows(updates, self.processes, rows) if sharded else updates
        count, share = len(full), -(-len(full) // self.processes.world_size)
        own = full[self.processes.rank * share : (self.processes.rank + 1) * share]
        finished = full.new_zeros(share, *full.shape[1:])
        if len(own):
            finished[: len(own)] = orthogonalize(own)
        together = _all_gather(finished, self.processes).flatten(0, 1)[:count]
        if not sharded:
            return together
        first = self.processes.rank * -(-rows // self.processes.world_size)
        return together[:, first : first + updates.shape[1]]


def _stacks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape together, as many as a stack may have entries; full matrices may be transposed."""
    shapes: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in parameters:
        shape = tuple(parameter.shape)
        shapes.setdefault(shape if isinstance(parameter, DTensor) else tuple(sorted(shape)), []).append(parameter)
    for shape, alike in shapes.items():
        alike.sort(key=lambda each: each.shape[0])  # those of one launch lie in memory alike
        most = max(1, _LARGEST_STACK // math.prod(shape))
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def _gathered_rows(part: Tensor, processes: Processes, rows: int) -> Tensor:
    """Full matrices (count, rows, columns) from the rows that each process has of them, in the order of processes.

    FSDP gives ceil(rows / processes) rows to each process, and fewer or none to the last ones.
    """
    count, here, columns = part.shape
    padded = part.new_zeros(count, -(-rows // processes.world_size), columns)
    padded[:, :here] = part
    return _all_gather(padded, processes).transpose(0, 1).reshape(count, -1, columns)[:, :rows]


def _all_gather(part: Tensor, processes: Processes) -> Tensor:
    """(processes, *shape) from a contiguous tensor of one shape on every process."""
    result = part.new_empty(processes.world_size, *part.shape)
    # As bytes, because gloo does not know every dtype.
    dist.all_gather(list(result.view(torch.uint8).unbind()), part.view(torch.uint8))
    return result
