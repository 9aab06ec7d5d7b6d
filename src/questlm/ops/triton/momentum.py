"""The passes over memory of an optimizer with momentum, each entry once, for up to eight matrices a launch.

Matrices that are transposed views are read as they lie in memory and written transposed, so that tall and wide ones
can be stacked. Floor: for Nesterov momentum gradient and buffer read, buffer and update written (14 bytes an entry
with updates of 16 bits); for the step weight and update read, weight written (10 bytes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.many import MANY, eight, pick
from questlm.ops.triton.tiles import FUSED

__all__ = ["decayed_step", "nesterov"]

_TILE = 64


@triton.jit
def _places(rows, columns, TILE: tl.constexpr):
    """Of a tile of a matrix as it lies in memory: offsets in it and in its transpose, and what is inside of both."""
    across = tl.cdiv(columns, TILE)
    row = tl.program_id(0) // across * TILE + tl.arange(0, TILE)
    column = tl.program_id(0) % across * TILE + tl.arange(0, TILE)
    at = row[:, None] * columns + column[None, :]
    transposed = column[:, None] * rows + row[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return at, transposed, inside, (column < columns)[:, None] & (row < rows)[None, :]


@triton.jit
def _nesterov(
    g0, g1, g2, g3, g4, g5, g6, g7, b0, b1, b2, b3, b4, b5, b6, b7, out_ptr, rows, columns, momentum,
    TILE: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    g_ptr = pick(which, g0, g1, g2, g3, g4, g5, g6, g7)
    b_ptr = pick(which, b0, b1, b2, b3, b4, b5, b6, b7)
    out_ptr += which.to(tl.int64) * rows * columns
    at, transposed, inside, inside_transposed = _places(rows, columns, TILE)
    gradient = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    buffer = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    buffer += (1 - momentum) * (gradient - buffer)
    tl.store(b_ptr + at, buffer.to(b_ptr.dtype.element_ty), mask=inside)
    ahead = (buffer + (1 - momentum) * (gradient - buffer)).to(out_ptr.dtype.element_ty)
    if TRANSPOSED:
        tl.store(out_ptr + transposed, tl.trans(ahead), mask=inside_transposed)
    else:
        tl.store(out_ptr + at, ahead, mask=inside)


@triton.jit
def _decayed_step(
    w0, w1, w2, w3, w4, w5, w6, w7, updates_ptr, lr, rows, columns, weight_decay, size,
    TILE: tl.constexpr, TRANSPOSED: tl.constexpr, LR_ON_DEVICE: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    w_ptr = pick(which, w0, w1, w2, w3, w4, w5, w6, w7)
    updates_ptr += which.to(tl.int64) * rows * columns
    at, transposed, inside, inside_transposed = _places(rows, columns, TILE)
    weight = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if TRANSPOSED:
        update = tl.trans(tl.load(updates_ptr + transposed, mask=inside_transposed, other=0.0)).to(tl.float32)
    else:
        update = tl.load(updates_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rate = tl.load(lr).to(tl.float32) if LR_ON_DEVICE else lr
    weight = weight * (1 - rate * weight_decay) - rate * size * update
    tl.store(w_ptr + at, weight.to(w_ptr.dtype.element_ty), mask=inside)


def nesterov(gradients: Sequence[Tensor], buffers: Sequence[Tensor], momentum: float, out: Tensor) -> None:
    """As `questlm.ops.nesterov`."""
    for start, stop, transposed in _runs(buffers):
        rows, columns = _in_memory(buffers[start])
        start_kernel(
            _nesterov, _grid(rows, columns, stop - start),
            *eight(gradients[start:stop]), *eight(buffers[start:stop]), out[start:stop], rows, columns, momentum,
            _TILE, transposed, num_warps=4, **FUSED,
        )  # fmt: skip


def decayed_step(
    weights: Sequence[Tensor], updates: Tensor, lr: float | Tensor, weight_decay: float, size: float
) -> None:
    """As `questlm.ops.decayed_step`."""
    for start, stop, transposed in _runs(weights):
        rows, columns = _in_memory(weights[start])
        start_kernel(
            _decayed_step, _grid(rows, columns, stop - start),
            *eight(weights[start:stop]), updates[start:stop], lr, rows, columns, weight_decay, size,
            _TILE, transposed, isinstance(lr, Tensor), num_warps=4, **FUSED,
        )  # fmt: skip


def _runs(matrices: Sequence[Tensor]) -> Iterator[tuple[int, int, bool]]:
    """(first, end, whether they are transposed views) of neighbours that go into one launch."""
    first = 0
    for plain, run in groupby(matrices, lambda each: each.is_contiguous()):
        end = first + len(list(run))
        for start in range(first, end, MANY):
            yield start, min(start + MANY, end), not plain
        first = end


def _in_memory(matrix: Tensor) -> tuple[int, int]:
    rows, columns = matrix.shape
    return (rows, columns) if matrix.is_contiguous() else (columns, rows)


def _grid(rows: int, columns: int, count: int) -> tuple[int, int]:
    return triton.cdiv(rows, _TILE) * triton.cdiv(columns, _TILE), count
