"""What generation asks of the logits of each step, in one call where there is native code for it."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.dispatch import choose

__all__ = ["all_finite", "argmax"]


def argmax(logits: Tensor) -> Tensor:
    """Return the index of the largest number of each row (rows, n), of equal ones the first: (rows,) int64."""
    if choose("argmax", logits) == "cpu":
        from questlm.ops.cpu import native

        return native.argmax(logits.contiguous())
    return logits.argmax(-1)


def all_finite(logits: Tensor) -> bool:
    """Whether all numbers are finite; reads the answer back where they are on a GPU."""
    if choose("all_finite", logits) == "cpu":
        from questlm.ops.cpu import native

        return native.all_finite(logits.contiguous())
    return bool(torch.isfinite(logits).all())
