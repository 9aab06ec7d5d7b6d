"""How matrices that are not quantised are stored: rounded to bf16, or as 8-bit rows.

Embedding, head and norms are trained in float32. What ships is stored so, and training rounds them alike
(with the identity as gradient), and the shipped model is exactly the one that was validated.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_stored", "from_int8_rows", "to_int8_rows"]

_LARGEST = 127


def as_stored(weight: Tensor, stored_dtype: str) -> Tensor:
    """Round `weight` (..., K) to the values that `stored_dtype` can hold: 'bf16' or 'int8'; 'float' changes nothing."""
    if stored_dtype == "float":
        return weight
    if stored_dtype == "bf16":
        return _round_to_bf16(weight)
    if stored_dtype == "int8":
        return from_int8_rows(*to_int8_rows(weight)).to(weight.dtype)
    raise ValueError(f"no stored dtype {stored_dtype!r}; there are float, bf16 and int8")


def to_int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest of 255 levels up to each row's largest magnitude: codes (..., K) int8 and scale (..., 1) float32."""
    weight = weight.to(torch.float32)
    scale = weight.abs().amax(dim=-1, keepdim=True) / _LARGEST
    codes = torch.round(weight / scale.clamp_min(torch.finfo(torch.float32).tiny))
    return codes.clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def from_int8_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `to_int8_rows` up to rounding, float32."""
    return codes.to(torch.float32) * scale


def _round_to_bf16(weight: Tensor) -> Tensor:
    """Nearest bf16 value, ties to even, in the dtype of `weight`."""
    if weight.dtype is not torch.float32:
        return weight.to(torch.bfloat16).to(weight.dtype)
    # By the bits, because torch.compile drops a cast to bf16 and back as if it changed nothing.
    bits = weight.view(torch.int32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return torch.where(weight.isnan(), weight, rounded.view(torch.float32))
