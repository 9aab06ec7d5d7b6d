"""Operations on rows of numbers and codes: public functions over one dispatch.

Every function takes the last dimension as the row, and the layer's input dimension K as its length. The definition of
each result is the reference in `questlm.ops.reference`; faster backends are tested against it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from questlm.ops.dispatch import BACKENDS, OPERATIONS, backend_for, unavailable, using_backend
from questlm.ops.grid import MIN_BLOCK_SIZE, Grid, LinearFormat, fit_block_size
from questlm.ops.reference import hadamard as _hadamard
from questlm.ops.reference import matmul as _matmul
from questlm.ops.reference import packing as _packing
from questlm.ops.reference import quantize as _quantize
from questlm.ops.reference.hadamard import without_autocast
from questlm.ops.reference.matmul import factor
from questlm.ops.reference.packing import packed_width

__all__ = [
    "BACKENDS",
    "MIN_BLOCK_SIZE",
    "OPERATIONS",
    "Grid",
    "LinearFormat",
    "Quantized",
    "backend_for",
    "dequantize",
    "factor",
    "fit_block_size",
    "hadamard",
    "masked_hadamard",
    "pack",
    "packed_width",
    "quantize",
    "scaled_matmul",
    "unavailable",
    "unpack",
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
        rotated = _hadamard.hadamard(x, block_size)
        return rotated if rotated.dtype is x.dtype and rotated is not x else rotated.to(x.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # symmetric, so its own gradient
        return _hadamard.hadamard(gradients[0], ctx.block_size).to(gradients[0].dtype), None


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


def quantize(x: Tensor, grid: Grid, block_size: int, mask_bound: float | None = None) -> Quantized:
    """Rotate rows by blocks of `block_size` (1: not at all), scale each by its rms, round to codes.

    Args:
        x: (rows, K) floating point.
        mask_bound: also return the bits of |x_h| <= mask_bound * step, the entries whose gradient passes.
    """
    if backend_for("quantize", x) == "cpu":
        from questlm.ops import cpu

        return Quantized(*cpu.quantize(x, grid, block_size, mask_bound))
    return Quantized(*_quantize.quantize(x, grid, block_size, mask_bound))


def dequantize(codes: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Values that codes stand for, in the rotated domain: (rows, K) of the step's dtype."""
    return _quantize.dequantize(codes, step, grid)


def masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """IHT(M * gradient): (rows, K) -> (rows, K), float32 for 16-bit gradients. `mask` is bits from `quantize`."""
    if backend_for("masked_hadamard", gradient) == "cpu":
        from questlm.ops import cpu

        return cpu.masked_hadamard(gradient, mask, block_size)
    return _hadamard.masked_hadamard(gradient, mask, block_size)


def scaled_matmul(
    x: Tensor, x_step: Tensor | None, x_grid: Grid | None, w: Tensor, w_step: Tensor | None, w_grid: Grid | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """y = x_q w_q^T from codes and steps: (tokens, K) and (out, K) -> (tokens, out) of `dtype`.

    A grid of None says that the factor is not codes but rotated values.
    """
    return _matmul.scaled_matmul(x, x_step, x_grid, w, w_step, w_grid, dtype)


def pack(codes: Tensor, levels: int) -> Tensor:
    """Codes of a grid with `levels` levels as bits: (..., n) uint8 -> (..., packed_width(n, levels)) uint8.

    Power-of-two grids take log2(levels) bits a code, three levels 1.6 (five codes a byte).
    """
    return _packing.pack_ternary(codes) if levels == 3 else _packing.pack(codes, (levels - 1).bit_length())


def unpack(packed: Tensor, levels: int, length: int) -> Tensor:
    """Inverse of `pack`: (..., packed_width(length, levels)) uint8 -> (..., length) uint8."""
    if levels == 3:
        return _packing.unpack_ternary(packed, length)
    return _packing.unpack(packed, (levels - 1).bit_length(), length)
