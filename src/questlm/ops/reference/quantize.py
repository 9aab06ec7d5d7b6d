"""Rotate, scale, round: from rows of numbers to codes, one step size a row, and the bits that let gradients pass.

Range: a row is quantised as these formulas say where the largest magnitude of its entries is 0 or between 1e-30 and
1e36, on every backend. Squares of such entries leave float32, so a row is brought near 1 by a power of two before it is
squared and summed, which changes no bit of what would have stayed in range. Outside of that range (and of float64's own
for float64 rows) entries of a rotated row can overflow or lose digits: its step is then infinite, NaN or inexact.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from questlm.grid import Grid
from questlm.ops.reference.hadamard import hadamard
from questlm.ops.reference.packing import pack

_CONSTANTS: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}

__all__ = ["dequantize", "kept_entries", "levels", "power_of_two", "quantize", "row_scale", "to_codes"]


def quantize(
    x: Tensor,
    grid: Grid,
    block_size: int,
    mask_bound: float | None,
    step_per_scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotate the rows of `x`, take each row's step size from its scale, and round to codes.

    Args:
        x: (rows, K) floating point.
        grid: the levels, and the step in units of the row's scale.
        block_size: Hadamard block, 1 for none.
        mask_bound: gradients pass where |x_h| <= mask_bound * step; None: no mask is made.
        step_per_scale: (rows, 1) or (1, 1), where it is learned; it then stands in for the grid's.
        offset: (rows, 1) or (1, 1), taken off the rotated rows before they are rounded; None: nothing.

    Returns:
        codes (rows, K) uint8; step (rows, 1) float32 (float64 for float64 inputs); mask (rows, ceil(K / 8)) uint8
        bits, lowest first, or None. A row that is not finite has a step that is not finite.
    """
    rotated = hadamard(x, block_size)
    if offset is not None:
        rotated = rotated - offset
    per_scale = grid.step_per_scale if step_per_scale is None else step_per_scale
    if per_scale is None:
        raise ValueError("the step of this grid is learned, so it must be given")
    step = (per_scale * row_scale(rotated, grid)).to(rotated.dtype)
    codes = to_codes(rotated, step, grid)
    if mask_bound is None:
        return codes, step, None
    near = rotated.abs() <= mask_bound * step
    if grid.group:  # a dropped entry became 0, so its own size is its error, and half a step the error to be trusted
        near = torch.where(codes == grid.levels, rotated.abs() <= 0.5 * step, near)
    return codes, step, pack(near.to(torch.uint8), 1)


def row_scale(rotated: Tensor, grid: Grid) -> Tensor:
    """What each row's step is a multiple of, (rows, 1): see `questlm.grid.Scale`. Not finite for such a row."""
    if grid.scale == "rms":
        unit = power_of_two(rotated)
        return (rotated / unit).square().mean(dim=-1, keepdim=True).sqrt() * unit
    if grid.scale == "absmean":
        unit = power_of_two(rotated.reshape(1, -1))
        return ((rotated / unit).abs().mean() * unit).expand(rotated.shape[0], 1)
    largest = rotated.abs().amax(dim=-1, keepdim=True)
    return largest if grid.scale == "absmax" else 1 + 0 * largest


def power_of_two(rows: Tensor) -> Tensor:
    """For each row of (rows, K) a power of two near its largest magnitude, (rows, 1) float32 or float64; no gradient.

    Divided by it, which is exact, the largest magnitude is in [1, 2). It and its inverse are never 0 or infinite; a row
    that is not finite stays so.
    """
    rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
    if rows.numel() == 0:
        return rows.new_ones(rows.shape[0], 1)
    integer, exponent = (torch.int64, 0x7FF << 52) if rows.dtype is torch.float64 else (torch.int32, 0xFF << 23)
    largest = torch.maximum(rows.amax(dim=-1, keepdim=True), -rows.amin(dim=-1, keepdim=True))
    smallest = torch.finfo(rows.dtype).tiny
    return (largest.view(integer) & exponent).view(rows.dtype).clamp(smallest, 1 / smallest)


def to_codes(rotated: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Nearest code of each entry, uint8: clip(round(x_h / step + 1/2)) for an even number of levels."""
    smallest = torch.finfo(step.dtype).tiny  # a row of zeros has step 0; its codes are then arbitrary but defined
    steps = rotated / step.clamp_min(smallest)
    if grid.table is not None:
        edges = _constants(tuple((a + b) / 2 for a, b in pairwise(grid.table)), steps.dtype, steps.device)
        return torch.bucketize(steps, edges).to(torch.uint8)
    fraction = grid.zero_point % 1
    index = torch.round(steps + fraction) + (grid.zero_point - fraction)
    codes = index.clamp(0, grid.levels - 1).to(torch.uint8)
    return codes.masked_fill(~kept_entries(rotated, grid.group), grid.levels) if grid.group else codes


def kept_entries(rotated: Tensor, group: int) -> Tensor:
    """Bool (rows, K): the 2 of each 4 neighbouring groups of `group` entries with the largest norm.

    Raises:
        ValueError: K is not a multiple of 4 * group.
    """
    if rotated.shape[-1] % (4 * group):
        raise ValueError(f"2:4 sparsity needs rows of a multiple of {4 * group} entries, not {rotated.shape[-1]}")
    groups = rotated.unflatten(-1, (-1, 4, group))
    norms = groups[..., 0].abs() if group == 1 else torch.hypot(groups[..., 0], groups[..., 1])
    largest = norms.topk(2, dim=-1).indices
    kept = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=rotated.device).scatter(-1, largest, True)
    return kept.unsqueeze(-1).expand(groups.shape).flatten(-3)


def levels(codes: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Codes as multiples of the step. Half-integers and integers up to 127.5 are exact in bfloat16 and wider."""
    if grid.table is not None:
        table = _constants(grid.table, dtype, codes.device)
        return table.index_select(0, codes.flatten().int()).view(codes.shape)  # a third of the time of table[codes]
    values = codes.to(dtype) - grid.zero_point
    return values.masked_fill(codes == grid.levels, 0) if grid.group else values


def dequantize(codes: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Values in the rotated domain: (rows, K), of the step's dtype."""
    return levels(codes, grid, step.dtype) * step


def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device; copied there once, because a CUDA graph cannot record a copy from the CPU."""
    if torch.compiler.is_compiling():  # the compiler makes them part of its code, and traces no cache
        return torch.tensor(values, dtype=dtype, device=device)
    key = (values, dtype, device)
    if key in _CONSTANTS:
        return _CONSTANTS[key]
    with torch.inference_mode(False):  # an inference tensor could not be used for training later
        constants = torch.tensor(values, dtype=dtype, device=device)
    if type(constants) is Tensor:  # a fake tensor, made while tracing, must not outlive the trace
        _CONSTANTS[key] = constants
    return constants
