"""IHT(M * gradient) in one pass. Floor: each entry and its bit read once, each entry written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.device import load_mask, offsets_of, pieces, rotate
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.tiles import Launch, matrix

__all__ = ["LAUNCH", "masked_hadamard"]

LAUNCH = Launch(entries=8192, programs=4, num_warps=4, num_stages=2)


@triton.jit(do_not_specialize=["rows"])
def _masked_hadamard(
    gradient_ptr, mask_ptr, matrix_ptr, out_ptr, rows, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        index, inside = pieces(tile, rows, NB, R, P)
        offsets = offsets_of(index, T)
        gradient = tl.load(gradient_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        if HAS_MASK:
            gradient *= load_mask(mask_ptr, index, inside, P, T)
        if ROTATES:
            gradient = rotate(gradient, h, EXACT) * factor
        tl.store(out_ptr + offsets, gradient.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int, dtype: torch.dtype) -> Tensor:
    """(rows, K) of `dtype`; `mask` is bits from `quantize`, None lets everything pass."""
    gradient = gradient.contiguous()
    rows, k = gradient.shape
    tiles = LAUNCH.tiles(k, block_size)
    out = gradient.new_empty((rows, k), dtype=dtype)
    if rows:
        start_kernel(
            _masked_hadamard, LAUNCH.grid(rows, tiles, gradient.device),
            gradient, gradient if mask is None else mask.contiguous(), matrix(tiles.T, block_size, gradient.device),
            out, rows, block_size**-0.5, *tiles,
            block_size > 1, gradient.dtype is torch.bfloat16, mask is not None, **LAUNCH.options(tiles),
        )  # fmt: skip
    return out
