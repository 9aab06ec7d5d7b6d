"""Operations on rows of numbers and codes: public functions over one dispatch.

Every function takes the last dimension as the row, and the layer's input dimension K as its length. The definition of
each result is the reference in `questlm.ops.reference`; faster backends are tested against it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from questlm.grid import MIN_BLOCK_SIZE, Grid, Scale, fit_block_size, packed_width
from questlm.ops.dispatch import BACKENDS, IMPLEMENTATIONS, choose, compile_ahead, reasons, using_backend
from questlm.ops.encode import (
    Encoded,
    Normed,
    codes_as,
    encode,
    encode_many,
    masked_hadamard,
    masked_hadamard_many,
    norm_encode,
    norm_encode_backward,
    operand_of,
    plain_codes,
    swiglu_encode,
    swiglu_encode_backward,
)
from questlm.ops.logits import all_finite, argmax
from questlm.ops.machine import unavailable
from questlm.ops.matmul import operand_gradient, scaled_matmul
from questlm.ops.modules import ResidualNorm, SwiGLU
from questlm.ops.momentum import decayed_step, nesterov
from questlm.ops.packed import PackedFormat, PackedWeight, packed_linear, prepack
from questlm.ops.precision import as_dtype, autocast_dtype, compute_dtype, without_autocast
from questlm.ops.reference import packing as _packing
from questlm.ops.reference import quantize as _quantize
from questlm.ops.reference.matmul import Operand, factor, operand_values
from questlm.ops.reference.norm import rms_norm
from questlm.ops.reference.quantize import kept_entries, power_of_two, row_scale
from questlm.ops.symmetric import odd_polynomial

__all__ = [
    "BACKENDS",
    "IMPLEMENTATIONS",
    "MIN_BLOCK_SIZE",
    "Encoded",
    "Grid",
    "Normed",
    "Operand",
    "PackedFormat",
    "PackedWeight",
    "Quantized",
    "ResidualNorm",
    "Scale",
    "SwiGLU",
    "all_finite",
    "argmax",
    "as_dtype",
    "autocast_dtype",
    "choose",
    "codes_as",
    "compile_ahead",
    "compute_dtype",
    "decayed_step",
    "dequantize",
    "encode",
    "encode_many",
    "factor",
    "fit_block_size",
    "hadamard",
    "kept_entries",
    "masked_hadamard",
    "masked_hadamard_many",
    "nesterov",
    "norm_encode",
    "norm_encode_backward",
    "odd_polynomial",
    "operand_gradient",
    "operand_of",
    "operand_values",
    "pack",
    "pack_sparse",
    "packed_linear",
    "packed_width",
    "plain_codes",
    "power_of_two",
    "prepack",
    "quantize",
    "reasons",
    "rms_norm",
    "row_scale",
    "scaled_matmul",
    "swiglu_encode",
    "swiglu_encode_backward",
    "unavailable",
    "unpack",
    "unpack_sparse",
    "using_backend",
    "without_autocast",
]


class Quantized(NamedTuple):
    """Rows as codes: (rows, K) uint8, the step size of each row (rows, 1), and mask bits (rows, ceil(K/8)) or None."""

    codes: Tensor
    step: Tensor
    mask: Tensor | None


class _Hadamard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block_size: int) -> Tensor:
        ctx.block_size = block_size
        if block_size == 1:
            return x.clone()
        rotated = _rotated(x, block_size)
        return as_dtype(rotated, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # symmetric, so its own gradient
        gradient: Tensor = _Hadamard.apply(gradients[0], ctx.block_size)
        return gradient, None


def _rotated(x: Tensor, block_size: int) -> Tensor:
    if not x.is_cuda:  # where kernels are made for float32
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    return masked_hadamard(x.reshape(-1, x.shape[-1]), None, block_size).view(x.shape)


def hadamard(x: Tensor, block_size: int = 128) -> Tensor:
    """Blockwise orthonormal Hadamard transform of the last dimension; its own inverse. Differentiable.

    Args:
        x: (..., K) floating point. Computed in float32 at least, returned in the dtype of `x`.
        block_size: a power of two that divides K. Where the default of 128 does not divide K, the largest power of
            two that does is used, if it is at least 16.

    Raises:
        ValueError: no such block (see `fit_block_size`), or `x` is not floating point.
    """
    if not x.is_floating_point():
        raise ValueError(f"the Hadamard transform takes floating-point numbers, not {x.dtype}")
    result: Tensor = _Hadamard.apply(x, fit_block_size(x.shape[-1], block_size))
    return result


def quantize(
    x: Tensor,
    grid: Grid,
    block_size: int,
    mask_bound: float | None = None,
    step_per_scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> Quantized:
    """Rotate rows by blocks of `block_size` (1: not at all), scale each, round to codes.

    Args:
        x: (rows, K) floating point; the largest magnitude of each row 0 or between 1e-30 and 1e36.
        mask_bound: also return the bits of |x_h| <= mask_bound * step, the entries whose gradient passes.
        step_per_scale: (rows, 1) or (1, 1) where the grid's is learned.
        offset: (rows, 1) or (1, 1), taken off the rotated rows first; the codes stand for what is left.
    """
    if grid.plain and step_per_scale is None and offset is None:
        (codes, _, step, _), mask = encode(x, grid, block_size, mask_bound, torch.float32)  # float32: plain codes
        assert step is not None
        return Quantized(codes, step, mask)
    return Quantized(*_quantize.quantize(x, grid, block_size, mask_bound, step_per_scale, offset))


def dequantize(codes: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Values that codes stand for, in the rotated domain: (rows, K) of the step's dtype."""
    return _quantize.dequantize(codes, step, grid)


def pack(codes: Tensor, levels: int) -> Tensor:
    """Pack codes of a grid with `levels` levels as bits: (..., n) uint8 -> (..., packed_width(n, levels)) uint8.

    Three levels take 1.6 bits a code (five codes a byte), other grids log2(levels) bits, rounded up.
    """
    return _packing.pack_ternary(codes) if levels == 3 else _packing.pack(codes, (levels - 1).bit_length())


def unpack(packed: Tensor, levels: int, length: int) -> Tensor:
    """Inverse of `pack`: (..., packed_width(length, levels)) uint8 -> (..., length) uint8."""
    if levels == 3:
        return _packing.unpack_ternary(packed, length)
    return _packing.unpack(packed, (levels - 1).bit_length(), length)


def pack_sparse(rows: Tensor, kept: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The kept half of 2:4 sparse rows, and which groups of entries are kept, as bits.

    Args:
        rows: (rows, K), codes or values.
        kept: (rows, K) bool; alike in each group, 2 of each 4 groups.

    Returns:
        (rows, K / 2) like `rows`, and (rows, packed_width(K / group, 2)) uint8.
    """
    return _packing.kept_half(rows, kept), _packing.pack(kept[:, ::group].to(torch.uint8), 1)


def unpack_sparse(half: Tensor, kept: Tensor, group: int, fill: int) -> Tensor:
    """Inverse of `pack_sparse`: (rows, K), with `fill` where nothing was kept."""
    groups = _packing.unpack(kept, 1, 2 * half.shape[-1] // group).bool()
    return _packing.spread_kept(half, groups.repeat_interleave(group, dim=-1), fill)
