"""What an optimizer with momentum does before and after its own work, for many matrices in few launches."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.dispatch import choose
from questlm.ops.reference import momentum as _reference

__all__ = ["decayed_step", "nesterov"]


def nesterov(gradients: list[Tensor], buffers: list[Tensor], momentum: float, out: Tensor) -> None:
    """b <- m b + (1 - m) g in place for each buffer b and gradient g, and (1 - m) g + m b of the new b into `out`.

    Args:
        gradients, buffers: matrices (rows, columns) of one shape, contiguous or transposed views of such.
        out: (count, rows, columns), contiguous, of any floating-point dtype.
    """
    if choose("momentum", gradients, buffers, out) == "one launch":
        from questlm.ops.triton import momentum as triton

        with torch.cuda.device_of(out):
            triton.nesterov(gradients, buffers, momentum, out)
    else:
        _reference.nesterov(gradients, buffers, momentum, out)


def decayed_step(weights: list[Tensor], updates: Tensor, lr: float | Tensor, weight_decay: float, size: float) -> None:
    """W <- (1 - r d) W - r s U in place, for each weight W and its update U.

    Args:
        weights: matrices (rows, columns) of one shape, contiguous or transposed views of such.
        updates: (count, rows, columns), contiguous.
        lr: r, a number or a scalar on the device; with d = `weight_decay` and s = `size`.
    """
    if choose("momentum", weights, weights, updates) == "one launch":
        from questlm.ops.triton import momentum as triton

        with torch.cuda.device_of(updates):
            triton.decayed_step(weights, updates, lr, weight_decay, size)
    else:
        _reference.decayed_step(weights, updates, lr, weight_decay, size)
