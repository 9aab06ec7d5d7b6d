"""A linear layer that computes with codes, and trains through them.

Forward (arXiv 2502.05003, section 3):   y  = x_q w_q^T, both factors in the Hadamard domain.
Backward, in the precision of the layer: dx = IHT(M_x * (dy w_q)),  dw = IHT(M_w * (dy^T x_q)).

The codes are multiplied as they are and each row's step size is applied to the product, which keeps the integer part
exact; in the backward pass the step is applied to dy for the same reason. Saved for backward are codes (one byte an
entry), step sizes (one a row) and mask bits (an eighth of a byte an entry), never a 16- or 32-bit copy of x or w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.config import QuantSpec
from questlm.ops import Grid, LinearFormat, Quantized, without_autocast
from questlm.quant.methods import find_method, linear_format

__all__ = ["FakeQuantLinear"]


class _QuantizedProduct(torch.autograd.Function):
    """y = x_q w_q^T with the gradients above. x is (tokens, K), w is (out, K); y is (tokens, out) of `dtype`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        form: LinearFormat,
        bounds: tuple[float | None, float | None],
        dtype: torch.dtype,
    ) -> Tensor:
        with without_autocast(x):  # every dtype below is chosen, none left to autocast
            qx = _encode(x, form.act, form.block_size, bounds[0] if ctx.needs_input_grad[0] else None)
            qw = _encode(w, form.weight, form.block_size, bounds[1] if ctx.needs_input_grad[1] else None)
            if form.act is None:
                qx = qx._replace(codes=qx.codes.to(dtype))
            if form.weight is None:
                qw = qw._replace(codes=qw.codes.to(dtype))
            ctx.form, ctx.dtypes = form, (x.dtype, w.dtype, dtype)
            ctx.save_for_backward(*qx, *qw)
            return ops.scaled_matmul(
                qx.codes, _step(qx, form.act), form.act, qw.codes, _step(qw, form.weight), form.weight, dtype
            )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        saved = ctx.saved_tensors
        qx, qw = Quantized(*saved[:3]), Quantized(*saved[3:])
        form: LinearFormat = ctx.form
        x_dtype, w_dtype, dtype = ctx.dtypes
        dx = dw = None
        with without_autocast(qx.codes):
            if ctx.needs_input_grad[0]:
                dy = _times_step(gradients[0], qw.step.T, form.weight, dtype)
                product = dy @ ops.factor(qw.codes, form.weight, dtype)
                dx = ops.masked_hadamard(product, qx.mask, form.block_size).to(x_dtype)
            if ctx.needs_input_grad[1]:
                dy = _times_step(gradients[0], qx.step, form.act, dtype)
                product = dy.T @ ops.factor(qx.codes, form.act, dtype)
                dw = ops.masked_hadamard(product, qw.mask, form.block_size).to(w_dtype)
        return dx, dw, None, None, None


def _encode(x: Tensor, grid: Grid | None, block_size: int, mask_bound: float | None) -> Quantized:
    """Codes of a quantised factor; of an unquantised one the rotated values, with an empty step and no mask."""
    if grid is None:
        return Quantized(ops.hadamard(x, block_size), x.new_empty(0, 1), None)
    return ops.quantize(x, grid, block_size, mask_bound)


def _step(quantized: Quantized, grid: Grid | None) -> Tensor | None:
    return None if grid is None else quantized.step


def _times_step(dy: Tensor, step: Tensor, grid: Grid | None, dtype: torch.dtype) -> Tensor:
    return dy.to(dtype) if grid is None else (dy * step).to(dtype)


class FakeQuantLinear(nn.Linear):
    """An `nn.Linear` whose product is quantised by `spec`; same parameters, same state dict.

    Input (..., in_features), output (..., out_features). Computes in the autocast dtype if one is on, else in the
    weight's dtype; float16 is computed in float32 and cast back, because a product of codes can leave its range.
    """

    spec: QuantSpec
    form: LinearFormat
    mask_bounds: tuple[float | None, float | None]
    quantized: bool

    @classmethod
    def from_linear(cls, linear: nn.Linear, spec: QuantSpec) -> FakeQuantLinear:
        """Wrap `linear`, sharing its parameters (on any device, meta included).

        Raises:
            ConfigError: unknown method, or no Hadamard block divides the input dimension.
        """
        form = linear_format(spec, linear.in_features)
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.spec, layer.form, layer.quantized = spec, form, True
        method = find_method(spec.method)
        rotated = form.block_size > 1
        act, weight = (None if g is None else method.mask_bound(g, rotated) for g in (form.act, form.weight))
        layer.mask_bounds = (act, weight)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """The plain layer again, sharing the same parameters."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def quantized_weight(self) -> Quantized:
        """The weight's codes (out, in) and step sizes (out, 1), as the forward pass uses them.

        Raises:
            ValueError: the weight of this layer is not quantised (16 bits).
        """
        if self.form.weight is None:
            raise ValueError("the weight of this layer is not quantised (16 bits)")
        return ops.quantize(self.weight.detach(), self.form.weight, self.form.block_size)

    def forward(self, input: Tensor) -> Tensor:
        """y = x_q w_q^T + b."""
        if not self.quantized:
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        dtype = _autocast_dtype(input.device.type) or self.weight.dtype
        computed = torch.float32 if dtype is torch.float16 else dtype
        y: Tensor = _QuantizedProduct.apply(rows, self.weight, self.form, self.mask_bounds, computed)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(dtype).reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.spec.label}, block_size={self.form.block_size}"


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    enabled = device_type != "meta" and torch.is_autocast_enabled(device_type)  # there is no autocast for meta
    return torch.get_autocast_dtype(device_type) if enabled else None
