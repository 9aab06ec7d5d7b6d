"""Which dtype an operation computes in, and how autocast is asked and switched off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_dtype", "autocast_dtype", "compute_dtype", "without_autocast"]


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which products of tensors on `x`'s device keep the dtypes they are written in."""
    if autocast_dtype(x) is None:
        return nullcontext()  # entering autocast takes as long as a small product
    return torch.autocast(x.device.type, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of autocast on `x`'s device, None where it is off."""
    kind = x.device.type
    enabled = not x.is_meta and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`; x itself, and not even asked to be another, where it is of that dtype.

    A `.to` that has nothing to do returns its input. Inside an autograd.Function torch.compile (seen in 2.11) then
    loses the gradient of that tensor, if it is also what the function takes or gives.
    """
    return x if x.dtype is dtype else x.to(dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a layer of `dtype` multiplies codes in: float32 for float16, whose range their products can leave."""
    return torch.float32 if dtype is torch.float16 else dtype
