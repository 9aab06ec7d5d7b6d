"""The kernels as operators of torch, `questlm::triton_...`, registered when this module is first imported."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.library import register
from questlm.ops.triton import interpreted
from questlm.ops.triton.int8_matmul import int8_matmul as _int8_matmul
from questlm.ops.triton.masked_hadamard import masked_hadamard as _masked_hadamard
from questlm.ops.triton.norm_quantize import norm_quantize as _norm_quantize
from questlm.ops.triton.norm_quantize import norm_quantize_backward as _norm_quantize_backward
from questlm.ops.triton.quantize import CODE_DTYPES
from questlm.ops.triton.quantize import quantize as _quantize
from questlm.ops.triton.swiglu_quantize import swiglu_quantize as _swiglu_quantize
from questlm.ops.triton.swiglu_quantize import swiglu_quantize_backward as _swiglu_quantize_backward

__all__ = [
    "int8_matmul",
    "masked_hadamard",
    "norm_quantize",
    "norm_quantize_backward",
    "quantize",
    "swiglu_quantize",
    "swiglu_quantize_backward",
]


def _codes_like(x: Tensor, mask_bound: float | None, code_dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    rows, k = x.shape
    return (
        x.new_empty((rows, k), dtype=CODE_DTYPES[code_dtype]),
        x.new_empty((rows, 1), dtype=torch.float32),
        x.new_empty((rows, k // 8) if mask_bound is not None else (0,), dtype=torch.uint8),
    )


def _fake_quantize(
    x: Tensor, block_size: int, levels: int, step_per_rms: float, mask_bound: float | None, code_dtype: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _codes_like(x, mask_bound, code_dtype)


def _fake_masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


def _fake_norm_quantize(
    x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, dtype: torch.dtype,
    block_size: int, levels: int, step_per_rms: float, mask_bound: float | None, code_dtype: str, trains: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    unit = x.new_empty(x.shape if trains else (0,), dtype=dtype)
    rstd = x.new_empty((len(x), 1) if trains else (0,), dtype=torch.float32)
    residual = (
        x.new_empty(0) if delta is None else x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, delta.dtype))
    )
    return residual, *_codes_like(x, mask_bound, code_dtype), unit, rstd


def _fake_norm_quantize_backward(
    gradient: Tensor, mask: Tensor | None, unit: Tensor, rstd: Tensor, gain: Tensor, block_size: int,
    residual: Tensor | None, dtype: torch.dtype, delta_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    ddelta = gradient.new_empty(gradient.shape if delta_dtype is not None else (0,), dtype=delta_dtype or dtype)
    return gradient.new_empty(gradient.shape, dtype=dtype), ddelta, gain.new_empty(gain.shape, dtype=torch.float32)


def _fake_swiglu_quantize(
    gate: Tensor, up: Tensor, dtype: torch.dtype,
    block_size: int, levels: int, step_per_rms: float, mask_bound: float | None, code_dtype: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _codes_like(gate, mask_bound, code_dtype)


def _fake_swiglu_quantize_backward(
    gradient: Tensor, mask: Tensor | None, gate: Tensor, up: Tensor, block_size: int
) -> Tensor:
    return gate.new_empty((gate.shape[0], 2 * gate.shape[1]))


def _fake_int8_matmul(
    a: Tensor, b: Tensor, a_step: Tensor, b_step: Tensor, a_sum: Tensor, b_sum: Tensor, dtype: torch.dtype
) -> Tensor:
    return a.new_empty((len(a), len(b)), dtype=dtype)


_DEVICE = "cpu" if interpreted() else "cuda"
_QUANTIZED = "(Tensor, Tensor, Tensor)"
_GRID = "int block_size, int levels, float step_per_rms, float? mask_bound, str code_dtype"

quantize = register(
    "questlm::triton_quantize", f"(Tensor x, {_GRID}) -> {_QUANTIZED}", _DEVICE, _quantize, _fake_quantize
)
int8_matmul = register(
    "questlm::triton_int8_matmul",
    "(Tensor a, Tensor b, Tensor a_step, Tensor b_step, Tensor a_sum, Tensor b_sum, ScalarType dtype) -> Tensor",
    _DEVICE,
    _int8_matmul,
    _fake_int8_matmul,
)
masked_hadamard = register(
    "questlm::triton_masked_hadamard",
    "(Tensor gradient, Tensor? mask, int block_size, ScalarType dtype) -> Tensor",
    _DEVICE,
    _masked_hadamard,
    _fake_masked_hadamard,
)
norm_quantize = register(
    "questlm::triton_norm_quantize",
    f"(Tensor x, Tensor? delta, Tensor gain, float eps, ScalarType dtype, {_GRID}, bool trains)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _DEVICE,
    _norm_quantize,
    _fake_norm_quantize,
)
norm_quantize_backward = register(
    "questlm::triton_norm_quantize_backward",
    "(Tensor gradient, Tensor? mask, Tensor unit, Tensor rstd, Tensor gain, int block_size, Tensor? residual,"
    " ScalarType dtype, ScalarType? delta_dtype) -> (Tensor, Tensor, Tensor)",
    _DEVICE,
    _norm_quantize_backward,
    _fake_norm_quantize_backward,
)
swiglu_quantize = register(
    "questlm::triton_swiglu_quantize",
    f"(Tensor gate, Tensor up, ScalarType dtype, {_GRID}) -> {_QUANTIZED}",
    _DEVICE,
    _swiglu_quantize,
    _fake_swiglu_quantize,
)
swiglu_quantize_backward = register(
    "questlm::triton_swiglu_quantize_backward",
    "(Tensor gradient, Tensor? mask, Tensor gate, Tensor up, int block_size) -> Tensor",
    _DEVICE,
    _swiglu_quantize_backward,
    _fake_swiglu_quantize_backward,
)
