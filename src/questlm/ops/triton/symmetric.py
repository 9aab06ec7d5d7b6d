"""Products that are symmetric: one half is computed, tile by tile, and each tile is written a second time, mirrored.

For matrices X of a batch, Y = constant I + linear X + square X X^T. With constant = linear = 0, X may have any number
of columns; otherwise it is symmetric itself, so that X X^T is its square. The sums are float32 and rounded once.
Floor: half the operations of the plain product at the rate of the tensor cores.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.device import INTERPRETED
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.tiles import FUSED

__all__ = ["Sizes", "symmetric_product"]


class Sizes(NamedTuple):
    """How the product is cut: tiles of BLOCK x BLOCK, summed over DEPTH columns at a time; and Triton's options."""

    BLOCK: int
    DEPTH: int
    num_warps: int
    num_stages: int


SIZES = Sizes(BLOCK=128, DEPTH=64, num_warps=8, num_stages=3)


@triton.jit
def _symmetric_product(
    x_ptr, y_ptr, rows, columns, constant, linear, square,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, POLYNOMIAL: tl.constexpr,
):  # fmt: skip
    # Of n tiles a side, tile row i computes the columns i, i + 1, ... i + n // 2, counted in a circle. So each pair of
    # a row and a column comes once, but for an even n those that are n / 2 apart, which come twice.
    tiles = tl.cdiv(rows, BLOCK)
    each = tiles * (tiles // 2 + 1)
    matrix = (tl.program_id(0) // each).to(tl.int64)
    distance, i = tl.program_id(0) % each // tiles, tl.program_id(0) % tiles
    if 2 * distance == tiles and 2 * i >= tiles:
        return
    j = (i + distance) % tiles
    x_ptr += matrix * rows * columns
    y_ptr += matrix * rows * rows
    row, column = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    # What lies outside is read from the last row, which costs no comparison in the loop.
    a_offsets, b_offsets = tl.minimum(row, rows - 1)[:, None] * columns, tl.minimum(column, rows - 1)[None, :] * columns
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, columns, DEPTH):
        left = start + depth
        a = tl.load(x_ptr + a_offsets + left[None, :], mask=(left < columns)[None, :], other=0.0)
        b = tl.load(x_ptr + b_offsets + left[:, None], mask=(left < columns)[:, None], other=0.0)
        if INTERPRETED:  # which multiplies the bits of 16-bit numbers
            total += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
        else:
            total = tl.dot(a, b, acc=total, input_precision="ieee")
    inside = (row < rows)[:, None] & (column < rows)[None, :]
    at = row[:, None] * rows + column[None, :]
    if POLYNOMIAL:
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total = square * total + linear * x + tl.where(row[:, None] == column[None, :], constant, 0.0)
    y = total.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=inside)
    if distance > 0:
        mirrored = column[:, None] * rows + row[None, :]
        tl.store(y_ptr + mirrored, tl.trans(y), mask=(column < rows)[:, None] & (row < rows)[None, :])


def symmetric_product(x: Tensor, constant: float, linear: float, square: float, sizes: Sizes = SIZES) -> Tensor:
    """constant I + linear X + square X X^T: contiguous (count, rows, columns) -> (count, rows, rows) of its dtype.

    Args:
        constant, linear: both 0 where X is not symmetric; `square` is then 1.
    """
    count, rows, columns = x.shape
    y = x.new_empty(count, rows, rows)
    tiles = triton.cdiv(rows, sizes.BLOCK)
    if y.numel():
        start_kernel(
            _symmetric_product, (count * tiles * (tiles // 2 + 1),),
            x, y, rows, columns, constant, linear, square, sizes.BLOCK, sizes.DEPTH, bool(constant or linear),
            num_warps=sizes.num_warps, num_stages=sizes.num_stages, **FUSED,
        )  # fmt: skip
    return y
