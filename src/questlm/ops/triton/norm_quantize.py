"""RMSNorm and quantisation in one pass, with the residual stream, and both of their gradients in one.

Forward: r = x + delta (what a sublayer adds to the residual), u = r / sqrt(mean r^2 + eps), h = u * gain rounded to the
dtype that the layer computes in, then codes, step and mask of h. Backward, from the gradients g of the rotated h and dr
of the residual: dh = IHT(M * g), and with w = dh * gain

    dx = ddelta = dr + (w - u mean(u w)) / sqrt(mean r^2 + eps),    dgain = sum over rows of dh * u.

What the backward pass needs of r is u, kept in the dtype computed in: half of float32 r. Floor of the forward pass: x
and delta read, r, u, codes and bits written; of the backward pass: g, bits, u and dr read, dx written, in two dtypes if
delta has another than x.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from questlm.ops.triton.device import load_mask, offsets_of, pieces, rotate, rounded, row_sums, write_codes
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.quantize import CODE_DTYPES
from questlm.ops.triton.tiles import Launch, matrix

__all__ = ["norm_quantize", "norm_quantize_backward"]

_FORWARD = Launch(entries=4096, programs=3, num_warps=4, num_stages=1)
_FORWARD_RESIDUAL = Launch(entries=4096, programs=2, num_warps=4, num_stages=3)
_BACKWARD = Launch(entries=4096, programs=2, num_warps=4, num_stages=3)


@triton.jit(do_not_specialize=["rows"])
def _norm_quantize(
    x_ptr, delta_ptr, gain_ptr, matrix_ptr, residual_ptr, data_ptr, step_ptr, mask_ptr, unit_ptr, rstd_ptr,
    rows, eps, step_per_rms, bound, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, CODE_DTYPE: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_DELTA: tl.constexpr, TRAINS: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    gain = tl.load(gain_ptr + offsets_of(tl.arange(0, P) % NB, T)).to(tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        index, inside = pieces(tile, rows, NB, R, P)
        offsets = offsets_of(index, T)
        x = tl.load(x_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        if HAS_DELTA:
            x += tl.load(delta_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
            residual = x.to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + offsets, residual, mask=inside[:, None])
            x = residual.to(tl.float32)  # what is normed is what is stored
        rstd = 1.0 / tl.sqrt(row_sums(tl.sum(x * x, axis=1), NB, R, P) / (NB * T) + eps)
        unit = x * rstd[:, None]
        y = unit * gain
        if EXACT:
            y = rounded(y)
        if ROTATES:
            y = rotate(y, h, EXACT)
        write_codes(
            y, factor, step_per_rms, bound, data_ptr, step_ptr, mask_ptr, index, inside,
            NB, R, P, T, LEVELS, CODE_DTYPE, HAS_MASK,
        )  # fmt: skip
        if TRAINS:
            tl.store(unit_ptr + offsets, unit.to(unit_ptr.dtype.element_ty), mask=inside[:, None])
            tl.store(rstd_ptr + index // NB, rstd, mask=inside & (index % NB == 0))


@triton.jit(do_not_specialize=["rows"])
def _norm_quantize_backward(
    gradient_ptr, mask_ptr, unit_ptr, rstd_ptr, gain_ptr, matrix_ptr, residual_ptr, dx_ptr, ddelta_ptr, dgain_ptr,
    rows, factor,
    NB: tl.constexpr, R: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
    ROTATES: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):  # fmt: skip
    entries = tl.arange(0, T)
    h = tl.load(matrix_ptr + entries[:, None] * T + entries[None, :])
    own = tl.arange(0, P)
    gain = tl.load(gain_ptr + offsets_of(own % NB, T)).to(tl.float32)
    dgain = tl.zeros((P, T), dtype=tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        index, inside = pieces(tile, rows, NB, R, P)
        offsets = offsets_of(index, T)
        dh = tl.load(gradient_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        if HAS_MASK:
            dh *= load_mask(mask_ptr, index, inside, P, T)
        if ROTATES:
            dh = rotate(dh, h, EXACT) * factor
        unit = tl.load(unit_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + index // NB, mask=inside, other=0.0)
        dgain += dh * unit
        dh *= gain
        along = row_sums(tl.sum(unit * dh, axis=1), NB, R, P) / (NB * T)
        dx = (dh - unit * along[:, None]) * rstd[:, None]
        if HAS_RESIDUAL:
            dx += tl.load(residual_ptr + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside[:, None])
        if HAS_DELTA:
            tl.store(ddelta_ptr + offsets, dx.to(ddelta_ptr.dtype.element_ty), mask=inside[:, None])
    into = tl.program_id(0) * (R * NB) + own
    tl.store(dgain_ptr + offsets_of(into, T), dgain, mask=(own < R * NB)[:, None])


def norm_quantize(
    x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, dtype: torch.dtype,
    block_size: int, levels: int, step_per_rms: float, mask_bound: float | None, code_dtype: str, trains: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """r = x + delta, codes, step and mask of RMSNorm(r) as `quantize` gives them, u of `dtype` and 1 / rms (rows, 1).

    x, delta, r and u are (rows, K), `gain` is (K,). r is empty without `delta`; u and 1 / rms are unless it `trains`.
    """
    x, gain = x.contiguous(), gain.contiguous()
    rows, k = x.shape
    launch = _FORWARD if delta is None else _FORWARD_RESIDUAL
    tiles = launch.tiles(k, block_size)
    dtype_of_residual = x.dtype if delta is None else torch.promote_types(x.dtype, delta.dtype)
    residual = x.new_empty((rows, k) if delta is not None else (0,), dtype=dtype_of_residual)
    data = x.new_empty((rows, k), dtype=CODE_DTYPES[code_dtype])
    step = x.new_empty((rows, 1), dtype=torch.float32)
    mask = x.new_empty((rows, k // 8) if mask_bound is not None else (0,), dtype=torch.uint8)
    unit = x.new_empty((rows, k) if trains else (0,), dtype=dtype)
    rstd = x.new_empty((rows, 1) if trains else (0,), dtype=torch.float32)
    if rows:
        start_kernel(
            _norm_quantize, launch.grid(rows, tiles, x.device),
            x, x if delta is None else delta.contiguous(), gain, matrix(tiles.T, block_size, x.device),
            residual, data, step, mask, unit, rstd,
            rows, eps, step_per_rms, mask_bound or 0.0, block_size**-0.5, *tiles, levels, code_dtype,
            block_size > 1, dtype is torch.bfloat16, mask_bound is not None, delta is not None, trains,
            **launch.options(tiles),
        )  # fmt: skip
    return residual, data, step, mask, unit, rstd


def norm_quantize_backward(
    gradient: Tensor, mask: Tensor | None, unit: Tensor, rstd: Tensor, gain: Tensor, block_size: int,
    residual: Tensor | None, dtype: torch.dtype, delta_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dx (rows, K) of `dtype`, the same of `delta_dtype` (empty for None), and dgain (K,) float32.

    Args:
        gradient: (rows, K), of the rotated rows.
        residual: (rows, K), the gradient of r along the residual stream, or None.
    """
    gradient = gradient.contiguous()
    rows, k = gradient.shape
    tiles = _BACKWARD.tiles(k, block_size)
    dx = gradient.new_empty((rows, k), dtype=dtype)
    ddelta = gradient.new_empty((rows, k) if delta_dtype is not None else (0,), dtype=delta_dtype or dtype)
    if not rows:
        return dx, ddelta, gain.new_zeros(k, dtype=torch.float32)
    grid = _BACKWARD.grid(rows, tiles, gradient.device)
    partial = gradient.new_empty((grid[0] * tiles.R, k), dtype=torch.float32)
    start_kernel(
        _norm_quantize_backward, grid,
        gradient, gradient if mask is None else mask.contiguous(),
        unit.contiguous(), rstd.contiguous(), gain.contiguous(),
        matrix(tiles.T, block_size, gradient.device), gradient if residual is None else residual.contiguous(),
        dx, ddelta, partial, rows, block_size**-0.5, *tiles,
        block_size > 1, gradient.dtype is torch.bfloat16, mask is not None, residual is not None,
        delta_dtype is not None, **_BACKWARD.options(tiles),
    )  # fmt: skip
    return dx, ddelta, partial.sum(0)
