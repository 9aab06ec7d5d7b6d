"""Muon: momentum whose matrices are made orthogonal before each step.

With gradient g of a matrix W of R rows and C columns, momentum buffer b and learning rate r, one step is

    b <- m b + (1 - m) g,    u = (1 - m) g + m b,    W <- (1 - r d) W - 0.2 r sqrt(max(R, C)) O(u)

with weight decay d. O(u) is U V^T of the singular value decomposition u = U S V^T, but with singular values near 1
instead of equal to 1: five Newton-Schulz iterations X <- a X + (b X X^T + c (X X^T)^2) X, which need only products
of matrices. The factor 0.2 sqrt(max(R, C)) gives the update the root mean square of an AdamW update, so that the
learning rate and the weight decay of AdamW are a good start (arXiv 2502.16982). This is the update of
`torch.optim.Muon` with adjust_lr_fn='match_rms_adamw'.

Matrices of one shape are stacked and multiplied in one batch, since a small model has many small matrices. Several
processes share the matrices of a stack: each makes its share orthogonal and sends it to the others. Where FSDP has
sharded the matrices by rows, they are first gathered, in the 16 bits in which the products are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

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
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for matrices, (rows, columns) each.

    Args:
        groups: parameter groups with `params`, `weight_decay` and `lr_ratio`.
        lr: learning rate, as of AdamW.
        momentum: decay of the average of gradients.
        precision: dtype of the Newton-Schulz products; None: bfloat16 on a GPU and float32 on a CPU, where bfloat16
            is seldom faster.
        processes: the processes that train the model.
    """

    recordable = True

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        precision: torch.dtype | None = None,
        processes: Processes = _ALONE,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self.precision, self.processes = precision, processes

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
        rows, columns = parameters[0].shape
        weights = [local_shard(parameter) for parameter in parameters]
        updates = torch.stack(self._momenta(parameters, group["momentum"]))
        updates = self._orthogonal(updates, isinstance(parameters[0], DTensor), rows).to(weights[0].dtype)
        updates.mul_(group["lr"] * (0.2 * max(rows, columns) ** 0.5))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(weights, list(updates.unbind()))

    def _momenta(self, parameters: Sequence[Tensor], momentum: float) -> list[Tensor]:
        """Update the momentum buffers; returns the Nesterov updates u, in the dtype of the products."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [local_shard(self.state[parameter]["momentum"]) for parameter in parameters]
        gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        precision = self.precision or (torch.bfloat16 if buffers[0].is_cuda else torch.float32)
        return [ahead.to(precision) for ahead in torch._foreach_lerp(gradients, buffers, momentum)]

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
    """Parameters of one shape together, as many as a stack may have entries."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    for shape, alike in shapes.items():
        most = max(1, _LARGEST_STACK // shape.numel())
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
