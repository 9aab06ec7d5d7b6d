"""Rows as factors of a quantised product, also straight from the norm or the activation before it.

`encode` writes codes in the dtype that the device multiplies fastest: uint8, int8 or float8 (`Operand` says what a
number means in each). What is fused here (RMSNorm or SwiGLU with the quantisation behind it, forward and backward) is
one kernel on a GPU and the composition of its parts on every other backend. These functions have no gradients:
`questlm.quant` has the autograd functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from questlm.grid import Grid
from questlm.ops.dispatch import choose
from questlm.ops.precision import as_dtype
from questlm.ops.reference import fused as _fused
from questlm.ops.reference import hadamard as _hadamard
from questlm.ops.reference import quantize as _quantize
from questlm.ops.reference.matmul import Operand

__all__ = [
    "Encoded",
    "Normed",
    "codes_as",
    "encode",
    "encode_many",
    "masked_hadamard",
    "masked_hadamard_many",
    "norm_encode",
    "norm_encode_backward",
    "operand_of",
    "plain_codes",
    "swiglu_encode",
    "swiglu_encode_backward",
]


class Encoded(NamedTuple):
    """A factor of a product, and the bits of its entries whose gradient passes: (rows, ceil(K / 8)) or None."""

    operand: Operand
    mask: Tensor | None


class Normed(NamedTuple):
    """A factor made from RMSNorm(r), r = x + delta; `residual` is r, or None where there is no delta.

    What the backward pass needs: `unit`, r / rms (rows, K), and `rstd`, 1 / rms (rows, 1).
    """

    residual: Tensor | None
    encoded: Encoded
    unit: Tensor
    rstd: Tensor


def encode(x: Tensor, grid: Grid, block_size: int, mask_bound: float | None, dtype: torch.dtype) -> Encoded:
    """Rotate the rows of `x` by blocks, scale each, and round to codes.

    Args:
        x: (rows, K) floating point.
        grid: the levels; those with learned steps go through `ops.quantize`.
        mask_bound: make the mask of |x_h| <= mask_bound * step; None: no mask.
        dtype: what the product will be computed in.
    """
    chosen = choose("quantize" if grid.plain else "quantize_other_grids", x, block_size)
    if chosen == "triton":
        from questlm.ops.triton import operators as triton

        code_dtype = choose("code_dtype", x.device, grid, dtype)
        return _encoded(triton.quantize(x, block_size, *_numbers(grid), mask_bound, code_dtype), grid, mask_bound)
    if chosen == "cpu":
        from questlm.ops import cpu

        codes, step, mask = cpu.quantize(x, grid, block_size, mask_bound)
    else:
        codes, step, mask = _quantize.quantize(x, grid, block_size, mask_bound)
    return Encoded(Operand(codes, grid, step), mask)


def encode_many(
    xs: Sequence[Tensor], grid: Grid, block_size: int, mask_bound: float | None, dtype: torch.dtype
) -> list[Encoded]:
    """`encode` of each of several matrices (rows, K) of one K, dtype and device; on a GPU in few launches."""
    if choose("quantize_many", xs, block_size, grid) == "one by one":
        return [encode(x, grid, block_size, mask_bound, dtype) for x in xs]
    from questlm.ops.triton.many import quantize_many

    code_dtype = choose("code_dtype", xs[0].device, grid, dtype)
    with torch.cuda.device_of(xs[0]):
        parts = quantize_many([x.contiguous() for x in xs], block_size, *_numbers(grid), mask_bound, code_dtype)
    sizes = [len(x) for x in xs]
    data, step = (part.split(sizes) for part in parts[:2])
    mask = parts[2].split(sizes) if mask_bound is not None else [parts[2]] * len(xs)
    return [_encoded(codes, grid, mask_bound) for codes in zip(data, step, mask, strict=True)]


def operand_of(data: Tensor, step: Tensor, grid: Grid) -> Operand:
    """Return the operand of codes on `grid` as `encode` wrote them: uint8, int8 or float8, (rows, K)."""
    if data.dtype is torch.uint8:
        return Operand(data, grid, step)
    return Operand(data, None, step, 0.5 * step if data.dtype is torch.int8 else None)


def plain_codes(data: Tensor, grid: Grid) -> Tensor:
    """Return uint8 codes 0 .. levels - 1 on `grid` for codes (rows, K) in any dtype that `encode` writes."""
    if data.dtype is torch.uint8:
        return data
    half = 0.5 if data.dtype is torch.int8 else 0.0
    return (data.float() + half + grid.zero_point).to(torch.uint8)


def codes_as(codes: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Return uint8 codes in `dtype`: uint8, int8 or float8, as `encode` would write them. Inverse of `plain_codes`."""
    if dtype is torch.uint8:
        return codes
    half = 0.5 if dtype is torch.int8 else 0.0
    return (codes.float() - grid.zero_point - half).to(dtype)


def norm_encode(
    x: Tensor, delta: Tensor | None, gain: Tensor, eps: float,
    grid: Grid, block_size: int, mask_bound: float | None, dtype: torch.dtype, trains: bool,
) -> Normed:  # fmt: skip
    """`encode` of RMSNorm(r) = r / sqrt(mean r^2 + eps) * gain, rounded to `dtype`, with r = x + delta.

    Args:
        x, delta: (rows, K), the residual stream and what is added to it, or None; gain: (K,).
        trains: whether `unit` and `rstd` are needed; without, they may be empty.
    """
    if choose("norm_quantize", x, block_size, grid, dtype) == "fused":
        from questlm.ops.triton import operators as triton

        code_dtype = choose("code_dtype", x.device, grid, dtype)
        residual, *codes, unit, rstd = triton.norm_quantize(
            x, delta, gain, eps, dtype, block_size, *_numbers(grid), mask_bound, code_dtype, trains
        )
        return Normed(None if delta is None else residual, _encoded(codes, grid, mask_bound), unit, rstd)
    residual = None if delta is None else x + delta
    normed, unit, rstd = _fused.norm(x if residual is None else residual, gain, eps, dtype)
    return Normed(residual, encode(normed, grid, block_size, mask_bound, dtype), unit, rstd)


def norm_encode_backward(
    gradient: Tensor, mask: Tensor | None, unit: Tensor, rstd: Tensor, gain: Tensor, block_size: int,
    residual: Tensor | None, dtype: torch.dtype, delta_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Gradients of x, (rows, K) of `dtype`, of delta, and of the gain, (K,), from that of the rotated rows.

    Args:
        gradient: (rows, K), with respect to the values that codes stand for.
        residual: (rows, K), the gradient with respect to r, or None.
        delta_dtype: of the gradient of delta, which is that of x; None: there is no delta.
    """
    if choose("norm_quantize_backward", gradient, block_size) == "fused":
        from questlm.ops.triton import operators as triton

        other = None if delta_dtype is dtype else delta_dtype
        dx, ddelta, dgain = triton.norm_quantize_backward(
            gradient, mask, unit, rstd, gain, block_size, residual, dtype, other
        )
        return dx, None if delta_dtype is None else dx if other is None else ddelta, dgain
    dx, dgain = _fused.norm_backward(gradient, mask, unit, rstd, gain, block_size)
    dx = dx if residual is None else dx + residual
    return as_dtype(dx, dtype), None if delta_dtype is None else as_dtype(dx, delta_dtype), dgain


def swiglu_encode(
    gate: Tensor, up: Tensor, grid: Grid, block_size: int, mask_bound: float | None, dtype: torch.dtype
) -> Encoded:
    """`encode` of silu(gate) * up, rounded to `dtype`; gate and up are (rows, K)."""
    if choose("swiglu_quantize", gate, block_size, grid, dtype) == "fused":
        from questlm.ops.triton import operators as triton

        code_dtype = choose("code_dtype", gate.device, grid, dtype)
        codes = triton.swiglu_quantize(gate, up, dtype, block_size, *_numbers(grid), mask_bound, code_dtype)
        return _encoded(codes, grid, mask_bound)
    return encode(_fused.swiglu(gate, up, dtype), grid, block_size, mask_bound, dtype)


def swiglu_encode_backward(gradient: Tensor, mask: Tensor | None, gate: Tensor, up: Tensor, block_size: int) -> Tensor:
    """Gradients of gate and up side by side, (rows, 2 K) of the dtype of gate, from that of the rotated rows."""
    if choose("swiglu_quantize_backward", gradient, block_size) == "fused":
        from questlm.ops.triton import operators as triton

        both: Tensor = triton.swiglu_quantize_backward(gradient, mask, gate, up, block_size)
        return both
    return _fused.swiglu_backward(gradient, mask, gate, up, block_size)


def masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int, dtype: torch.dtype | None = None) -> Tensor:
    """IHT(M * gradient): (rows, K) -> (rows, K) of `dtype`, by default float32 for 16-bit gradients.

    `mask` is bits from `encode` or `quantize`; None lets everything pass.
    """
    dtype = dtype or torch.promote_types(gradient.dtype, torch.float32)
    chosen = choose("masked_hadamard", gradient, block_size)
    if chosen == "triton":
        from questlm.ops.triton import operators as triton

        rotated: Tensor = triton.masked_hadamard(gradient, mask, block_size, dtype)
        return rotated
    if chosen == "cpu":
        from questlm.ops import cpu

        rotated = cpu.masked_hadamard(gradient, mask, block_size)
    else:
        rotated = _hadamard.masked_hadamard(gradient, mask, block_size)
    return as_dtype(rotated, dtype)


def masked_hadamard_many(gradients: Sequence[Tensor], masks: Sequence[Tensor | None], block_size: int) -> None:
    """`masked_hadamard` of each of several gradients (rows, K) of one K, dtype and device, in place.

    On a GPU in few launches, where the masks are those that `encode_many` made.
    """
    joined = _joined(masks)
    if choose("masked_hadamard_many", gradients, joined, block_size) == "one by one":
        for gradient, mask in zip(gradients, masks, strict=True):
            gradient.copy_(masked_hadamard(gradient, mask, block_size, gradient.dtype))
        return
    from questlm.ops.triton.many import masked_hadamard_many as kernel

    assert joined is not None
    with torch.cuda.device_of(gradients[0]):
        kernel(gradients, joined, block_size)


def _joined(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Return the matrix whose rows are those of all `masks`, in this order, or None if there is no such matrix."""
    first = masks[0]
    base = None if first is None else first._base
    if base is None or any(mask is None or mask._base is not base for mask in masks):
        return None
    offsets, at = [mask.storage_offset() for mask in masks if mask is not None], 0
    for mask, offset in zip(masks, offsets, strict=True):
        if mask is None or offset != at:
            return None
        at += mask.numel()
    return base if at == base.numel() else None


def _numbers(grid: Grid) -> tuple[int, float]:
    assert grid.step_per_scale is not None
    return grid.levels, grid.step_per_scale


def _encoded(codes: tuple[Tensor, ...] | list[Tensor], grid: Grid, mask_bound: float | None) -> Encoded:
    data, step, mask = codes
    return Encoded(operand_of(data, step, grid), None if mask_bound is None else mask)
