"""Methods applied to a single tensor: for experiments, tests and pictures."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from questlm import ops
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.ops import Grid
from questlm.quant.methods import find_method, linear_format

__all__ = ["dequantize", "fake_quantize", "quantize"]

Role = Literal["weight", "activation"]


class _FakeQuantize(torch.autograd.Function):
    """x_q in the rotated domain; backward IHT(M * gradient). Saves the mask bits and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, block_size: int, mask_bound: float) -> Tensor:
        quantized = ops.quantize(x, grid, block_size, mask_bound)
        ctx.save_for_backward(quantized.mask)
        ctx.block_size = block_size
        values = ops.dequantize(quantized.codes, quantized.step, grid)
        return values if values.dtype is x.dtype else values.to(x.dtype)  # see ops.reference.matmul

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        return ops.masked_hadamard(gradients[0], mask, ctx.block_size).to(gradients[0].dtype), None, None, None


def fake_quantize(
    x: Tensor,
    method: str = "quest",
    bits: int | str = 4,
    role: Role = "weight",
    rotate_back: bool = False,
    block_size: int = 128,
) -> Tensor:
    """Values that `x` takes after quantisation, with the method's gradient.

    Args:
        x: (..., K) floating point; the last dimension is a row (an output channel's weights, or a token).
        method: name in `questlm.quant.METHODS`.
        bits: 1 to 8, 'ternary', or 16 for no rounding (only the rotation, if the method has one).
        role: which factor of the product this is, for methods that treat them unlike.
        rotate_back: return to the domain of `x`; by default the result stays in the Hadamard domain.
        block_size: of the Hadamard transform.

    Returns:
        (..., K), of the dtype of `x`.

    Raises:
        ConfigError: unknown method or role, bits out of range, no block divides K.
    """
    grid, block = _grid_and_block(x.shape[-1], method, bits, role, block_size)
    if grid is None:
        values = ops.hadamard(x, block)
    else:
        chosen = find_method(method)
        bound = chosen.mask_bound(grid, block > 1)
        values = _FakeQuantize.apply(x.reshape(-1, x.shape[-1]), grid, block, bound).reshape(x.shape)
    return ops.hadamard(values, block) if rotate_back else values


def quantize(
    x: Tensor, method: str = "quest", bits: int | str = 4, role: Role = "weight", block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Codes (..., K) uint8 and scales (..., 1), the step size of each row. Arguments as in `fake_quantize`.

    Raises:
        ConfigError: as `fake_quantize`; also for 16 bits, which have no codes.
    """
    grid, block = _grid_and_block(x.shape[-1], method, bits, role, block_size)
    codes, step, _ = ops.quantize(x.detach().reshape(-1, x.shape[-1]), _require(grid, bits), block)
    return codes.reshape(x.shape), step.reshape(*x.shape[:-1], 1)


def dequantize(
    codes: Tensor,
    scales: Tensor,
    method: str = "quest",
    bits: int | str = 4,
    role: Role = "weight",
    rotate_back: bool = False,
    block_size: int = 128,
) -> Tensor:
    """Values (..., K) that `codes` (..., K) and `scales` (..., 1) stand for, of the dtype of `scales`."""
    grid, block = _grid_and_block(codes.shape[-1], method, bits, role, block_size)
    values = ops.dequantize(codes, scales, _require(grid, bits))
    return ops.hadamard(values, block) if rotate_back else values


def _grid_and_block(row: int, method: str, bits: int | str, role: str, block_size: int) -> tuple[Grid | None, int]:
    if role not in ("weight", "activation"):
        raise ConfigError(f"role = {role!r}; allowed are 'weight' and 'activation'")
    spec = QuantSpec(method=method, weight_bits=bits, act_bits=bits, block_size=block_size)  # type: ignore[arg-type]
    form = linear_format(spec, row)
    return (form.weight if role == "weight" else form.act), form.block_size


def _require(grid: Grid | None, bits: int | str) -> Grid:
    if grid is None:
        raise ConfigError(f"bits = {bits!r} means not quantised, so there are no codes; use 1 to 8 or 'ternary'")
    return grid
