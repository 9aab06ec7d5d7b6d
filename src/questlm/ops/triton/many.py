"""The kernels `quantize` and `masked_hadamard` over the matrices of a whole model, in few launches.

A small matrix is done in less time than a launch takes and leaves most of the GPU idle, so up to eight of one row
length go into one launch: their tiles are numbered through, and a table says where each matrix begins. What is written
for them lies in one block of memory, rows after rows; gradients are changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.device import load_mask, offsets_of, pieces, rotate, write_codes
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.masked_hadamard import LAUNCH as _MASKED
from questlm.ops.triton.quantize import CODE_DTYPES
from questlm.ops.triton.quantize import LAUNCH as _QUANTIZE
from questlm.ops.triton.tiles import Tiles, matrix

__all__ = ["MANY", "eight", "masked_hadamard_many", "pick", "quantize_many"]

MANY = 8
_NEVER = 2**30  # number of a tile that there is not


@triton.jit
def _place(tile, table_ptr):
    """Of a tile: number of its matrix, the tile's number in it, that matrix's first row among all, and its rows."""
    numbers = tl.arange(0, 8)
    which = tl.sum((tl.load(table_ptr + numbers) <= tile).to(tl.int32), axis=0) - 1
    first_row = tl.load(table_ptr + 8 + which)
    return which, tile - tl.load(table_ptr + which), first_row, tl.load(table_ptr + 9 + which) - first_row


@triton.jit
def pick(which, p0, p1, p2, p3, p4, p5, p6, p7):
    """The pointer of number `which` among eight."""
    picked = p0
    if which == 1:
        picked = p1
    if which == 2:
        picked = p2
    if which == 3:
        picked = p3
    if which == 4:
        picked = p4
    if which == 5:
        picked = p5
    if which == 6:
        picked = p6
    if which == 7:
        picked = p7
    return picked


@triton.jit(do_not_specialize=["tiles"])
def _quantize_many(
    p0, p1, p2, p3, p4, p5, p6, p7, table_ptr, matrix_ptr, data_ptr, step_ptr, mask_ptr,
    tiles, step_per_rms, bound, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, CODE_DTYPE: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        which, local, first_row, rows = _place(tile, table_ptr)
        index, inside = pieces(local, rows, NB, R, P)
        x_ptr = pick(which, p0, p1, p2, p3, p4, p5, p6, p7)
        x = tl.load(x_ptr + offsets_of(index, T), mask=inside[:, None], other=0.0).to(tl.float32)
        if ROTATES:
            x = rotate(x, h, EXACT)
        write_codes(
            x, factor, step_per_rms, bound, data_ptr, step_ptr, mask_ptr, index + first_row * NB, inside,
            NB, R, P, T, LEVELS, CODE_DTYPE, HAS_MASK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tiles"])
def _masked_hadamard_many(
    p0, p1, p2, p3, p4, p5, p6, p7, table_ptr, matrix_ptr, mask_ptr, tiles, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        which, local, first_row, rows = _place(tile, table_ptr)
        index, inside = pieces(local, rows, NB, R, P)
        at = pick(which, p0, p1, p2, p3, p4, p5, p6, p7) + offsets_of(index, T)
        gradient = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
        gradient *= load_mask(mask_ptr, index + first_row * NB, inside, P, T)
        if ROTATES:
            gradient = rotate(gradient, h, EXACT) * factor
        tl.store(at, gradient.to(at.dtype.element_ty), mask=inside[:, None])


def quantize_many(
    xs: Sequence[Tensor], block_size: int, levels: int, step_per_rms: float, mask_bound: float | None, code_dtype: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What `quantize` gives for the rows of all `xs`, one below the other; contiguous, of one width and dtype."""
    rows, k, first = sum(len(x) for x in xs), xs[0].shape[1], xs[0]
    tiles = _QUANTIZE.tiles(k, block_size)
    data = first.new_empty((rows, k), dtype=CODE_DTYPES[code_dtype])
    step = first.new_empty((rows, 1), dtype=torch.float32)
    mask = first.new_empty((rows, k // 8) if mask_bound is not None else (0,), dtype=torch.uint8)
    row = 0
    for start in range(0, len(xs), MANY):
        group = xs[start : start + MANY]
        stop = row + sum(len(x) for x in group)
        table, count = _table(tuple(len(x) for x in group), tiles, first.device)
        start_kernel(
            _quantize_many, _QUANTIZE.grid(count * tiles.R, tiles, first.device),
            *eight(group), table, matrix(tiles.T, block_size, first.device),
            data[row:stop], step[row:stop], mask[row:stop], count, step_per_rms, mask_bound or 0.0, block_size**-0.5,
            *tiles, levels, code_dtype, block_size > 1, first.dtype is torch.bfloat16, mask_bound is not None,
            **_QUANTIZE.options(tiles),
        )  # fmt: skip
        row = stop
    return data, step, mask


def masked_hadamard_many(gradients: Sequence[Tensor], mask: Tensor, block_size: int) -> None:
    """IHT(M * gradient) of each, in place; `mask` is bits of all their rows, one below the other."""
    first, row = gradients[0], 0
    tiles = _MASKED.tiles(first.shape[1], block_size)
    for start in range(0, len(gradients), MANY):
        group = gradients[start : start + MANY]
        stop = row + sum(len(gradient) for gradient in group)
        table, count = _table(tuple(len(gradient) for gradient in group), tiles, first.device)
        start_kernel(
            _masked_hadamard_many, _MASKED.grid(count * tiles.R, tiles, first.device),
            *eight(group), table, matrix(tiles.T, block_size, first.device), mask[row:stop], count, block_size**-0.5,
            *tiles, block_size > 1, first.dtype is torch.bfloat16, **_MASKED.options(tiles),
        )  # fmt: skip
        row = stop


def eight(group: Sequence[Tensor]) -> list[Tensor]:
    """Fill up to eight with the first: a kernel takes eight pointers, whether it uses them or not."""
    return [*group, *[group[0]] * (MANY - len(group))]


@lru_cache(maxsize=1024)
def _table(rows: tuple[int, ...], tiles: Tiles, device: torch.device) -> tuple[Tensor, int]:
    """For matrices of so many rows: first tiles (8) and first rows (9) of each, int32; and the number of tiles.

    Kept, because it must not be copied to the device while a CUDA graph is recorded.
    """
    first_tiles, first_rows = [0], [0]
    for count in rows:
        first_tiles.append(first_tiles[-1] + -(-count // tiles.R))
        first_rows.append(first_rows[-1] + count)
    missing = MANY - len(rows)
    table = [*first_tiles[:-1], *[_NEVER] * missing, *first_rows, *[first_rows[-1]] * missing]
    with torch.inference_mode(False):
        return torch.tensor(table, dtype=torch.int32, device=device), first_tiles[-1]
