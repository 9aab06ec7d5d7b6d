"""What an optimizer with momentum does before and after its own work on a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["decayed_step", "nesterov"]


def nesterov(gradients: list[Tensor], buffers: list[Tensor], momentum: float, out: Tensor) -> None:
    """b <- m b + (1 - m) g in place for each buffer b and gradient g, and (1 - m) g + m b of the new b into `out`.

    Args:
        gradients, buffers: matrices of one shape.
        out: (count, rows, columns) of any dtype.
    """
    torch._foreach_lerp_(buffers, gradients, 1 - momentum)
    torch._foreach_copy_(list(out.unbind()), torch._foreach_lerp(gradients, buffers, momentum))


def decayed_step(weights: list[Tensor], updates: Tensor, lr: float | Tensor, weight_decay: float, size: float) -> None:
    """W <- (1 - r d) W - r s U in place, for each weight W and its update U, (count, rows, columns).

    Args:
        lr: r, a number or a scalar on the device; with d = `weight_decay` and s = `size`.
    """
    torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_sub_(weights, list((updates.to(weights[0].dtype) * (lr * size)).unbind()))
