"""Rotate, scale, round: from rows of numbers to codes, one step size a row, and the bits that let gradients pass."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.grid import Grid
from questlm.ops.reference.hadamard import hadamard
from questlm.ops.reference.packing import pack

__all__ = ["dequantize", "levels", "quantize", "row_step", "to_codes"]


def quantize(x: Tensor, grid: Grid, block_size: int, mask_bound: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotate the rows of `x`, take each row's step size from its rms, and round to codes.

    Args:
        x: (rows, K) floating point.
        grid: number of levels, and step in units of the row's rms.
        block_size: Hadamard block, 1 for none.
        mask_bound: gradients pass where |x_h| <= mask_bound * step; None: no mask is made.

    Returns:
        codes (rows, K) uint8; step (rows, 1) float32 (float64 for float64 inputs); mask (rows, ceil(K / 8)) uint8
        bits, lowest first, or None.
    """
    rotated = hadamard(x, block_size)
    step = row_step(rotated, grid)
    codes = to_codes(rotated, step, grid)
    mask = None if mask_bound is None else pack((rotated.abs() <= mask_bound * step).to(torch.uint8), 1)
    return codes, step, mask


def row_step(rotated: Tensor, grid: Grid) -> Tensor:
    """Step size of each row, (rows, 1): step_per_rms * sqrt(mean(x_h^2)). Zero for a row of zeros."""
    return grid.step_per_rms * rotated.square().mean(dim=-1, keepdim=True).sqrt()


def to_codes(rotated: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Nearest code of each entry, uint8: clip(round(x_h / step + 1/2)) for an even number of levels."""
    offset = 0.5 if grid.levels % 2 == 0 else 0.0
    smallest = torch.finfo(step.dtype).tiny  # a row of zeros has step 0; its codes are then arbitrary but defined
    index = torch.round(rotated / step.clamp_min(smallest) + offset) + (grid.levels - 1) // 2
    return index.clamp(0, grid.levels - 1).to(torch.uint8)


def levels(codes: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Codes as multiples of the step: half-integers or integers up to 127.5, exact in bfloat16 and wider."""
    return codes.to(dtype) - grid.zero_point


def dequantize(codes: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Values in the rotated domain: (rows, K), of the step's dtype."""
    return levels(codes, grid, step.dtype) * step
