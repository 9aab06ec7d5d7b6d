"""How matrices that are not quantised are stored: rounded to bf16, or as 8-bit rows.

Embedding, head and norms are trained in float32. What ships is stored so, and training rounds them alike
(with the identity as gradient), and the shipped model is exactly the one that was validated.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_stored", "from_int8_rows", "load_steps", "round_steps", "store_steps", "to_int8_rows"]

_LARGEST = 127
_FP8_FACTOR = 256.0  # brings the steps of usual weights, 2^-14 to 1.75, among the normal numbers of E4M3
_MINIFLOATS = {"fp16": (10, -14, 65504.0), "fp8": (3, -6, 448.0)}  # mantissa bits, lowest exponent, largest number


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


def round_steps(step: Tensor, steps: str) -> Tensor:
    """Round steps, not negative, to the nearest that 'fp16' or 'fp8' (E4M3 of 256 times the step) can hold; float32.

    Ties go to even, and what is larger than the largest becomes it. 'fp32' changes nothing.
    """
    if steps == "fp32":
        return step
    mantissa, lowest, largest = _MINIFLOATS[steps]
    factor = _FP8_FACTOR if steps == "fp8" else 1.0
    value = step.to(torch.float32).clamp_max(largest / factor) * factor
    # By the bits and not by casts, which torch.compile drops. A quantum is a power of two, so all of this is exact.
    power = (value.view(torch.int32) & 0x7F800000).view(torch.float32)
    quantum = power.clamp_min(2.0**lowest) * 2.0**-mantissa
    return torch.where(step.isfinite(), torch.round(value / quantum) * quantum / factor, step)


def store_steps(step: Tensor, steps: str) -> Tensor:
    """Return rounded steps as they are stored: float32, float16, or the bytes of E4M3 as uint8."""
    if steps == "fp8":
        return (step * _FP8_FACTOR).to(torch.float8_e4m3fn).view(torch.uint8)
    return step.to(torch.float16) if steps == "fp16" else step


def load_steps(stored: Tensor, steps: str) -> Tensor:
    """Inverse of `store_steps`, float32."""
    if steps == "fp8":
        return stored.view(torch.float8_e4m3fn).to(torch.float32) / _FP8_FACTOR
    return stored.to(torch.float32)
