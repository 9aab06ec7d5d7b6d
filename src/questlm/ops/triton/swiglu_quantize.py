"""SwiGLU and quantisation in one pass, and both of their gradients in one.

Forward: a = silu(gate) * up, rounded to the dtype that the layer computes in, then codes, step and mask of a. Backward,
from the gradient g of the rotated a: da = IHT(M * g), and with s = sigmoid(gate)

    dgate = da * up * s (1 + gate (1 - s)),    dup = da * gate * s.

Floor of the forward pass: gate and up read, codes and bits written; of the backward pass: g, bits, gate and up read,
two gradients written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.device import load_mask, offsets_of, pieces, rotate, rounded, sigmoid, write_codes
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.quantize import CODE_DTYPES
from questlm.ops.triton.tiles import Launch, matrix

__all__ = ["swiglu_quantize", "swiglu_quantize_backward"]

_FORWARD = Launch(entries=8192, programs=2, num_warps=4, num_stages=3)
_BACKWARD = Launch(entries=8192, programs=4, num_warps=4, num_stages=2)


@triton.jit(do_not_specialize=["rows"])
def _swiglu_quantize(
    gate_ptr, up_ptr, matrix_ptr, data_ptr, step_ptr, mask_ptr, rows, step_per_rms, bound, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, CODE_DTYPE: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        index, inside = pieces(tile, rows, NB, R, P)
        offsets = offsets_of(index, T)
        gate = tl.load(gate_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        up = tl.load(up_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        y = gate * sigmoid(gate) * up
        if EXACT:
            y = rounded(y)
        if ROTATES:
            y = rotate(y, h, EXACT)
        write_codes(
            y, factor, step_per_rms, bound, data_ptr, step_ptr, mask_ptr, index, inside,
            NB, R, P, T, LEVELS, CODE_DTYPE, HAS_MASK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _swiglu_quantize_backward(
    gradient_ptr, mask_ptr, gate_ptr, up_ptr, matrix_ptr, both_ptr, rows, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        index, inside = pieces(tile, rows, NB, R, P)
        offsets = offsets_of(index, T)
        da = tl.load(gradient_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        if HAS_MASK:
            da *= load_mask(mask_ptr, index, inside, P, T)
        if ROTATES:
            da = rotate(da, h, EXACT) * factor
        gate = tl.load(gate_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        up = tl.load(up_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        share = sigmoid(gate)
        dup = da * gate * share
        dgate = da * up * share * (1.0 + gate * (1.0 - share))
        beside = offsets + (index // NB).to(tl.int64)[:, None] * (NB * T)  # a row of both is two rows long
        tl.store(both_ptr + beside, dgate.to(both_ptr.dtype.element_ty), mask=inside[:, None])
        tl.store(both_ptr + beside + NB * T, dup.to(both_ptr.dtype.element_ty), mask=inside[:, None])


def swiglu_quantize(
    gate: Tensor, up: Tensor, dtype: torch.dtype,
    block_size: int, levels: int, step_per_rms: float, mask_bound: float | None, code_dtype: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Codes, step and mask of silu(gate) * up as `quantize` gives them; gate and up are (rows, K)."""
    gate, up = gate.contiguous(), up.contiguous()
    rows, k = gate.shape
    tiles = _FORWARD.tiles(k, block_size)
    data = gate.new_empty((rows, k), dtype=CODE_DTYPES[code_dtype])
    step = gate.new_empty((rows, 1), dtype=torch.float32)
    mask = gate.new_empty((rows, k // 8) if mask_bound is not None else (0,), dtype=torch.uint8)
    if rows:
        start_kernel(
            _swiglu_quantize, _FORWARD.grid(rows, tiles, gate.device),
            gate, up, matrix(tiles.T, block_size, gate.device), data, step, mask,
            rows, step_per_rms, mask_bound or 0.0, block_size**-0.5,
            *tiles, levels, code_dtype, block_size > 1, dtype is torch.bfloat16, mask_bound is not None,
            **_FORWARD.options(tiles),
        )  # fmt: skip
    return data, step, mask


def swiglu_quantize_backward(
    gradient: Tensor, mask: Tensor | None, gate: Tensor, up: Tensor, block_size: int
) -> Tensor:
    """dgate and dup side by side, (rows, 2 K) of the dtype of `gate`, from the gradient of the rotated rows."""
    gradient, gate, up = gradient.contiguous(), gate.contiguous(), up.contiguous()
    rows, k = gradient.shape
    tiles = _BACKWARD.tiles(k, block_size)
    both = gate.new_empty((rows, 2 * k))
    if rows:
        start_kernel(
            _swiglu_quantize_backward, _BACKWARD.grid(rows, tiles, gate.device),
            gradient, gradient if mask is None else mask.contiguous(), gate, up,
            matrix(tiles.T, block_size, gate.device), both, rows, block_size**-0.5, *tiles,
            block_size > 1, gradient.dtype is torch.bfloat16, mask is not None, **_BACKWARD.options(tiles),
        )  # fmt: skip
    return both
