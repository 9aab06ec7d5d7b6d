"""The two halves of a quantised product's gradient: through the rounding of a factor, and through the product.

A factor of a product is `Rows`: codes, from which the product is computed, and a carrier, a tensor of the same shape
that takes the gradient with respect to the values that the codes stand for. A method whose values have to be computed
anyway (learned steps) has them as carrier. Where the gradient is a mask (QuEST, STE) the values are not needed, so the
carrier is one zero that pretends to have the shape of the rows and costs no memory; what it receives, the autograd
function that made the codes masks and rotates back.

So rows that go into several products (q, k and v; gate and up) are quantised once, their gradients are summed in the
rotated domain, and masked and rotated back once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from questlm import ops
from questlm.ops import Grid, Operand, without_autocast
from questlm.quant.quantizers import MaskedRounding, Quantizer

__all__ = ["Pending", "Rows", "encode_rows", "norm_rows", "product", "swiglu_rows"]


class Rows(NamedTuple):
    """A factor of a product: its codes, and the tensor that receives its gradient.

    Attributes:
        operand: codes and step sizes of the rows (rows, K).
        carrier: (..., K), receives the gradient with respect to the operand's values.
    """

    operand: Operand
    carrier: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor that was encoded, (..., K)."""
        return self.carrier.shape


def encode_rows(x: Tensor, quantizer: Quantizer | None, block_size: int, dtype: torch.dtype) -> Rows:
    """Quantise x (..., K) to a factor of a product in `dtype`, with the gradient of `quantizer`; None: only rotate."""
    rows = x.reshape(-1, x.shape[-1])
    if quantizer is None:
        rotated = ops.hadamard(rows, block_size) if block_size > 1 else rows
        return Rows(Operand(rotated.detach().to(dtype)), rotated.view(x.shape))
    rounding = quantizer.rounding
    if rounding is not None:
        data, step, carrier = _Encode.apply(rows, rounding.grid, block_size, rounding.mask_bound, dtype)
        return Rows(ops.operand_of(data, step, rounding.grid), carrier.view(x.shape))
    with torch.no_grad():
        operand = quantizer.operand(rows)
    return Rows(operand, quantizer.values(rows, operand).view(x.shape))


def norm_rows(
    x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, rounding: MaskedRounding, dtype: torch.dtype
) -> tuple[Tensor, Rows]:
    """Return r = x + delta (..., K), and `encode_rows` of RMSNorm(r) with gain (K,), rounded to `dtype`."""
    grid, flat = rounding.grid, (-1, x.shape[-1])
    settings = (*rounding, dtype)
    added = None if delta is None else delta.reshape(flat)
    residual, data, step, carrier = _NormEncode.apply(x.reshape(flat), added, gain, eps, settings)
    return residual.view(x.shape), Rows(ops.operand_of(data, step, grid), carrier.view(x.shape))


def swiglu_rows(gate: Tensor | Pending, up: Tensor | Pending, rounding: MaskedRounding, dtype: torch.dtype) -> Rows:
    """Return `encode_rows` of silu(gate) * up rounded to `dtype`; gate and up are (..., K) or not computed yet."""
    grid = rounding.grid
    settings = (*rounding, dtype)
    if isinstance(gate, Pending) and isinstance(up, Pending):
        x, compute_dtype = gate.rows, ops.compute_dtype(dtype)
        data, step, carrier = _GateUpEncode.apply(
            _flat(x), gate.weight.carrier, up.weight.carrier, settings, compute_dtype, gate.float8,
            *_flatten(x, gate.weight, up.weight),
        )  # fmt: skip
        shape = (*x.shape[:-1], carrier.shape[-1])
    else:
        gate, up = (each.computed() if isinstance(each, Pending) else each for each in (gate, up))
        data, step, carrier = _SwiGLUEncode.apply(*(each.reshape(-1, each.shape[-1]) for each in (gate, up)), settings)
        shape = tuple(gate.shape)
    return Rows(ops.operand_of(data, step, grid), carrier.view(shape))


def product(x: Rows, w: Rows, dtype: torch.dtype, float8: bool = False) -> Tensor:
    """Compute y = x_q w_q^T, (..., out) of `dtype`, from the codes of x (..., K) and w (out, K).

    `float8` computes the gradient of x in float8 (`ops.operand_gradient`).
    """
    y: Tensor = _Product.apply(_flat(x), w.carrier, dtype, float8, *_flatten(x, w))
    return y.view(*x.shape[:-1], y.shape[-1])


class Pending(NamedTuple):
    """A product of rows (..., K) and a weight (out, K) that is left to the activation behind it."""

    rows: Rows
    weight: Rows
    float8: bool

    def computed(self) -> Tensor:
        """Compute the product, (..., out)."""
        dtype = ops.autocast_dtype(self.rows.carrier) or self.weight.carrier.dtype
        return product(self.rows, self.weight, ops.compute_dtype(dtype), self.float8).to(dtype)


def _flat(x: Rows) -> Tensor:
    return x.carrier.reshape(-1, x.shape[-1])


def _flatten(*factors: Rows) -> tuple[Tensor | Grid | None, ...]:
    """Flatten operands to data, grid, step and offset of each, because autograd tracks only plain arguments."""
    return tuple(part for rows in factors for part in rows.operand)


class _Saved:
    """Operands saved for the backward pass: one byte an entry and one step a row, never a 16- or 32-bit copy."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.grids = tuple(parts[1::4])
        self.tensors = tuple(part for index, part in enumerate(parts) if index % 4 != 1)

    @staticmethod
    def operands(grids: Sequence[Grid | None], tensors: Sequence[Any]) -> list[Operand]:
        """Rebuild the operands from what was saved."""
        return [Operand(tensors[3 * i], grid, *tensors[3 * i + 1 : 3 * i + 3]) for i, grid in enumerate(grids)]


class _Product(torch.autograd.Function):
    """y = x_q w_q^T of (tokens, K) and (out, K); the gradients dy w_q and dy^T x_q go to the carriers."""

    @staticmethod
    def forward(
        ctx: Any, x_carrier: Tensor, w_carrier: Tensor, dtype: torch.dtype, float8: bool, *parts: Any
    ) -> Tensor:
        saved = _Saved(parts)
        ctx.grids, ctx.dtypes, ctx.float8 = saved.grids, (x_carrier.dtype, w_carrier.dtype, dtype), float8
        ctx.save_for_backward(*saved.tensors)
        x, w = saved.operands(saved.grids, saved.tensors)
        with without_autocast(x_carrier):  # every dtype here is explicit
            return ops.scaled_matmul(x, w, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w = _Saved.operands(ctx.grids, ctx.saved_tensors)
        x_dtype, w_dtype, dtype = ctx.dtypes
        needs_x, needs_w = ctx.needs_input_grad[:2]
        with without_autocast(x.data):
            dx = ops.operand_gradient(gradients[0], w, dtype, x_dtype, ctx.float8) if needs_x else None
            dw = ops.operand_gradient(gradients[0].T, x, dtype, w_dtype) if needs_w else None
        return dx, dw, *[None] * 10


_Settings = tuple[Grid, int, float | None, torch.dtype]
"""Grid, block size, bound of the mask and dtype of the product."""


class _Encode(torch.autograd.Function):
    """Quantise rows (rows, K): data, step and carrier. The gradient is IHT(M * g). Saves mask bits and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, grid: Grid, block_size: int, mask_bound: float | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        bound = mask_bound if ctx.needs_input_grad[0] else None
        with without_autocast(x):
            encoded = ops.encode(x, grid, block_size, bound, dtype)
        ctx.save_for_backward(encoded.mask)
        ctx.block_size, ctx.dtype = block_size, x.dtype
        return _outputs(ctx, encoded.operand, x.shape, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (mask,) = ctx.saved_tensors
        with without_autocast(gradients[2]):
            dx = ops.masked_hadamard(gradients[2], mask, ctx.block_size, ctx.dtype)
        return dx, None, None, None, None


class _NormEncode(torch.autograd.Function):
    """Return r = x + delta, and data, step and carrier of RMSNorm(r).

    Saves r / rms in the dtype computed in, and mask bits. The gradient along the residual is added here.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, settings: _Settings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grid, block_size, mask_bound, dtype = settings
        trains = any(ctx.needs_input_grad)
        with without_autocast(x):
            normed = ops.norm_encode(
                x, delta, gain, eps, grid, block_size, mask_bound if trains else None, dtype, trains
            )
        ctx.save_for_backward(normed.encoded.mask, normed.unit, normed.rstd, gain)
        ctx.block_size, ctx.dtypes = block_size, (x.dtype, None if delta is None else delta.dtype)
        residual = x.view_as(x) if normed.residual is None else normed.residual
        return residual, *_outputs(ctx, normed.encoded.operand, x.shape, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        mask, unit, rstd, gain = ctx.saved_tensors
        dtype, delta_dtype = ctx.dtypes
        residual, gradient = gradients[0], gradients[3]
        if gradient is None:  # the norm was not used
            assert residual is not None
            return residual, None if delta_dtype is None else residual.to(delta_dtype), None, None, None
        with without_autocast(gradient):
            dx, ddelta, dgain = ops.norm_encode_backward(
                gradient, mask, unit, rstd, gain, ctx.block_size, residual, dtype, delta_dtype
            )
        return dx, ddelta, dgain.to(gain.dtype), None, None


class _SwiGLUEncode(torch.autograd.Function):
    """Return data, step and carrier of silu(gate) * up. Saves gate, up and mask bits."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, settings: _Settings) -> tuple[Tensor, Tensor, Tensor]:
        grid, block_size, mask_bound, dtype = settings
        bound = mask_bound if any(ctx.needs_input_grad) else None
        with without_autocast(gate):
            encoded = ops.swiglu_encode(gate, up, grid, block_size, bound, dtype)
        ctx.save_for_backward(encoded.mask, gate, up)
        ctx.block_size = block_size
        return _outputs(ctx, encoded.operand, gate.shape, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        mask, gate, up = ctx.saved_tensors
        with without_autocast(gradients[2]):
            both = ops.swiglu_encode_backward(gradients[2], mask, gate, up, ctx.block_size)
        dgate, dup = both.chunk(2, dim=1)
        return dgate, dup, None


class _GateUpEncode(torch.autograd.Function):
    """Multiply rows by the weights of gate and up, and return data, step and carrier of silu(gate) * up.

    As `_Product` and `_SwiGLUEncode` one after the other; but what comes back through the activation is one tensor, as
    the two weights' product takes it.
    """

    @staticmethod
    def forward(
        ctx: Any, x_carrier: Tensor, gate_carrier: Tensor, up_carrier: Tensor, settings: _Settings,
        compute_dtype: torch.dtype, float8: bool, *parts: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grid, block_size, mask_bound, dtype = settings
        saved = _Saved(parts)
        x, *ws = saved.operands(saved.grids, saved.tensors)
        with without_autocast(x_carrier):
            gate, up = (ops.scaled_matmul(x, w, compute_dtype).to(dtype) for w in ws)
            bound = mask_bound if any(ctx.needs_input_grad) else None
            encoded = ops.swiglu_encode(gate, up, grid, block_size, bound, dtype)
        ctx.save_for_backward(encoded.mask, gate, up, *saved.tensors)
        ctx.grids, ctx.block_size, ctx.float8 = saved.grids, block_size, float8
        ctx.dtypes = (x_carrier.dtype, gate_carrier.dtype, compute_dtype)
        return _outputs(ctx, encoded.operand, gate.shape, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mask, gate, up, *tensors = ctx.saved_tensors
        x, *ws = _Saved.operands(ctx.grids, tensors)
        x_dtype, w_dtype, dtype = ctx.dtypes
        with without_autocast(x.data):
            dy = ops.swiglu_encode_backward(gradients[2], mask, gate, up, ctx.block_size).to(dtype)
            dx = dw = None
            if ctx.needs_input_grad[0]:
                values = torch.cat([ops.operand_values(w).to(dtype) for w in ws])
                dx = ops.operand_gradient(dy, Operand(values), dtype, x_dtype, ctx.float8)
            if any(ctx.needs_input_grad[1:3]):
                dw = ops.operand_gradient(dy.T, x, dtype, w_dtype)
        dws = (None, None) if dw is None else dw.chunk(2)
        return dx, *dws, *[None] * 15


def _outputs(ctx: Any, operand: Operand, shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return an operand's tensors, without gradient, and a carrier of `shape`, with one, from an autograd function."""
    assert operand.step is not None
    ctx.mark_non_differentiable(operand.data, operand.step)
    ctx.set_materialize_grads(False)
    return operand.data, operand.step, operand.step.new_zeros((), dtype=ops.compute_dtype(dtype)).expand(shape)
