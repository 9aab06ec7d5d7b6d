"""Rows to codes in one pass: rms, rotation, rounding, mask.

Floor: each entry read once, one byte and one bit written. `benchmarks/bench_kernels.py` measures how near we are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.device import offsets_of, pieces, rotate, write_codes
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.tiles import Launch, matrix

__all__ = ["CODE_DTYPES", "LAUNCH", "quantize"]

LAUNCH = Launch(entries=8192, programs=2, num_warps=4, num_stages=3)


@triton.jit(do_not_specialize=["rows"])
def _quantize(
    x_ptr, matrix_ptr, data_ptr, step_ptr, mask_ptr, rows, step_per_rms, bound, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, CODE_DTYPE: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        index, inside = pieces(tile, rows, NB, R, P)
        offsets = offsets_of(index, T)
        x = tl.load(x_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        if ROTATES:
            x = rotate(x, h, EXACT)
        write_codes(
            x, factor, step_per_rms, bound, data_ptr, step_ptr, mask_ptr, index, inside,
            NB, R, P, T, LEVELS, CODE_DTYPE, HAS_MASK,
        )  # fmt: skip


def quantize(
    x: Tensor, block_size: int, levels: int, step_per_rms: float, mask_bound: float | None, code_dtype: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (rows, K) in `code_dtype`, steps (rows, 1) float32, mask bits (rows, K / 8) uint8 (none: empty).

    Args:
        x: (rows, K), float32, bfloat16 or float16.
        code_dtype: 'uint8' (codes), 'float8' (levels, at most 16 of them) or 'int8' (levels less one half).
    """
    x = x.contiguous()
    rows, k = x.shape
    tiles = LAUNCH.tiles(k, block_size)
    data = x.new_empty((rows, k), dtype=CODE_DTYPES[code_dtype])
    step = x.new_empty((rows, 1), dtype=torch.float32)
    mask = x.new_empty((rows, k // 8) if mask_bound is not None else (0,), dtype=torch.uint8)
    if rows:
        start_kernel(
            _quantize, LAUNCH.grid(rows, tiles, x.device),
            x, matrix(tiles.T, block_size, x.device), data, step, mask, rows, step_per_rms, mask_bound or 0.0,
            block_size**-0.5, *tiles, levels, code_dtype, block_size > 1, x.dtype is torch.bfloat16,
            mask_bound is not None, **LAUNCH.options(tiles),
        )  # fmt: skip
    return data, step, mask


CODE_DTYPES = {"uint8": torch.uint8, "int8": torch.int8, "float8": torch.float8_e4m3fn}
"""The torch dtype of each name that `code_dtype` can have."""
