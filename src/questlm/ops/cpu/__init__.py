"""Native CPU kernels: quantise float32 rows, and rotate masked gradients back, each in one pass over memory.

`kernels.c` says how they work. They are custom operators of torch (`questlm::cpu_quantize`,
`questlm::cpu_masked_hadamard`), so that `torch.compile` and meta tensors see through them; registered when this module
is first imported, which `questlm.ops.dispatch` does on first use. Gradients are the caller's business.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.grid import Grid
from questlm.ops.cpu import native
from questlm.ops.cpu.native import unavailable
from questlm.ops.library import register

__all__ = ["masked_hadamard", "quantize", "unavailable"]


def quantize(x: Tensor, grid: Grid, block_size: int, mask_bound: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotate, scale and round the rows of `x`, as `questlm.ops.reference.quantize.quantize` does.

    Args:
        x: (rows, K) float32 on the CPU, in the range of `ops.quantize`.
        grid: a plain one: number of levels, and step in units of the row's rms.
        block_size: Hadamard block, a power of two that divides K; 1 for none.
        mask_bound: gradients pass where |x_h| <= mask_bound * step; None: no mask is made.

    Returns:
        codes (rows, K) uint8; step (rows, 1) float32; mask (rows, ceil(K / 8)) uint8 bits, lowest first, or None.
        A row that is not finite has a step that is not finite.

    Raises:
        ValueError: another dtype or device, or a block size that does not fit.
    """
    codes, step, mask = _QUANTIZE(x, block_size, grid.levels, grid.step_per_scale, mask_bound)
    return codes, step, None if mask_bound is None else mask


def masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """IHT(M * gradient), as `questlm.ops.reference.hadamard.masked_hadamard` computes it.

    Args:
        gradient: (rows, K) float32 on the CPU.
        mask: (rows, ceil(K / 8)) uint8 bits from `quantize`, or None to let everything pass.
        block_size: as in the forward pass.

    Raises:
        ValueError: another dtype or device, a mask of another shape, or a block size that does not fit.
    """
    if mask is None and block_size == 1:
        return gradient
    return _MASKED_HADAMARD(gradient, mask, block_size)


def _quantize(
    x: Tensor, block_size: int, levels: int, step_per_rms: float, mask_bound: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, block_size)
    return native.quantize(x, block_size, levels, step_per_rms, mask_bound)


def _fake_quantize(
    x: Tensor, block_size: int, levels: int, step_per_rms: float, mask_bound: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    *rows, k = x.shape
    mask_shape = (0,) if mask_bound is None else (*rows, (k + 7) // 8)
    return (
        x.new_empty(x.shape, dtype=torch.uint8),
        x.new_empty((*rows, 1), dtype=torch.float32),
        x.new_empty(mask_shape, dtype=torch.uint8),
    )


def _masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    _check(gradient, block_size)
    width = (*gradient.shape[:-1], -(-gradient.shape[-1] // 8))
    if mask is not None and (mask.shape != width or mask.dtype is not torch.uint8 or mask.device.type != "cpu"):
        raise ValueError(f"the mask must be {width} uint8 on the CPU, not {tuple(mask.shape)} {mask.dtype}")
    return native.masked_hadamard(gradient, mask, block_size)


def _fake_masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    return gradient.new_empty(gradient.shape)


def _check(x: Tensor, block_size: int) -> None:
    """The kernels read memory as they are told to, so what they are told is checked first."""
    if x.dtype is not torch.float32 or x.device.type != "cpu" or x.dim() == 0:
        raise ValueError(f"the native kernels take rows of float32 on the CPU, not {x.dtype} on {x.device}")
    if block_size < 1 or block_size & (block_size - 1) or x.shape[-1] % block_size:
        raise ValueError(f"block size {block_size} is not a power of two that divides the dimension {x.shape[-1]}")


_QUANTIZE = register(
    "questlm::cpu_quantize",
    "(Tensor x, int block_size, int levels, float step_per_rms, float? mask_bound) -> (Tensor, Tensor, Tensor)",
    "cpu",
    _quantize,
    _fake_quantize,
)
_MASKED_HADAMARD = register(
    "questlm::cpu_masked_hadamard",
    "(Tensor gradient, Tensor? mask, int block_size) -> Tensor",
    "cpu",
    _masked_hadamard,
    _fake_masked_hadamard,
)
