"""A linear layer that computes with codes, and trains through them.

Forward (arXiv 2502.05003, section 3):   y  = x_q w_q^T, both factors in the Hadamard domain.
Backward, in the precision of the layer: dx = IHT(M_x * (dy w_q)),  dw = IHT(M_w * (dy^T x_q)).

The codes are multiplied as they are and each row's step size is applied to the product, which keeps the integer part
exact; in the backward pass the step is applied to dy for the same reason. Saved for backward are codes (one byte an
entry), step sizes (one a row) and mask bits (an eighth of a byte an entry), never a 16- or 32-bit copy of x or w.

That is `_MaskedProduct`, for quantisers without state whose gradient is a mask. Every other quantiser goes the general
way, `_CodedProduct`: it makes the values with their gradient and the codes; the product is computed from the codes, so
that it is the one a packed model computes, and its gradient dy w_q, dy^T x_q is handed to the values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.ops import Grid, LinearFormat, Operand, without_autocast
from questlm.quant.methods import find_method, gradual_share, layer_quantizers
from questlm.quant.quantizers import DynamicQuantizer, Quantizer

__all__ = ["FakeQuantLinear"]

_NORM_EPS = 1e-5


class _MaskedProduct(torch.autograd.Function):
    """y = x_q w_q^T with the gradients above. x is (tokens, K), w is (out, K); y is (tokens, out) of `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, quantizers: tuple[_Masking, _Masking], block_size: int, dtype: torch.dtype
    ) -> Tensor:
        with without_autocast(x):  # every dtype below is chosen, none left to autocast
            qx, x_mask = _encode(x, quantizers[0], block_size, dtype, ctx.needs_input_grad[0])
            qw, w_mask = _encode(w, quantizers[1], block_size, dtype, ctx.needs_input_grad[1])
            ctx.grids, ctx.block_size, ctx.dtypes = (qx.grid, qw.grid), block_size, (x.dtype, w.dtype, dtype)
            ctx.save_for_backward(qx.data, qx.step, x_mask, qw.data, qw.step, w_mask)
            return ops.scaled_matmul(qx, qw, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_data, x_step, x_mask, w_data, w_step, w_mask = ctx.saved_tensors
        x_dtype, w_dtype, dtype = ctx.dtypes
        dx = dw = None
        with without_autocast(x_data):
            if ctx.needs_input_grad[0]:
                product = ops.operand_gradient(gradients[0], Operand(w_data, ctx.grids[1], w_step), dtype)
                dx = ops.masked_hadamard(product, x_mask, ctx.block_size).to(x_dtype)
            if ctx.needs_input_grad[1]:
                product = ops.operand_gradient(gradients[0].T, Operand(x_data, ctx.grids[0], x_step), dtype)
                dw = ops.masked_hadamard(product, w_mask, ctx.block_size).to(w_dtype)
        return dx, dw, None, None, None


_Masking = tuple[Grid | None, float | None]
"""Grid of a factor (None: not quantised) and the bound of its gradient's mask in steps (None: no mask)."""


def _encode(
    x: Tensor, masking: _Masking, block_size: int, dtype: torch.dtype, needs_mask: bool
) -> tuple[Operand, Tensor | None]:
    """Codes of a quantised factor and its mask; of another one the rotated values."""
    grid, bound = masking
    if grid is None:
        return Operand(ops.hadamard(x, block_size).to(dtype)), None
    codes, step, mask = ops.quantize(x, grid, block_size, bound if needs_mask else None)
    return Operand(codes, grid, step), mask


class _CodedProduct(torch.autograd.Function):
    """y = x_q w_q^T computed from operands; the gradient goes to their differentiable values (tokens, K), (out, K)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_values: Tensor,
        w_values: Tensor,
        grids: tuple[Grid | None, Grid | None],
        dtype: torch.dtype,
        *tensors: Tensor | None,  # data, step and offset of x, then of w
    ) -> Tensor:
        ctx.grids, ctx.dtypes = grids, (x_values.dtype, w_values.dtype, dtype)
        ctx.save_for_backward(*tensors)
        with without_autocast(x_values):
            return ops.scaled_matmul(_operand(tensors[:3], grids[0]), _operand(tensors[3:], grids[1]), dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x_dtype, w_dtype, dtype = ctx.dtypes
        with without_autocast(saved[0]):
            dx = dw = None
            if ctx.needs_input_grad[0]:
                dx = ops.operand_gradient(gradients[0], _operand(saved[3:], ctx.grids[1]), dtype).to(x_dtype)
            if ctx.needs_input_grad[1]:
                dw = ops.operand_gradient(gradients[0].T, _operand(saved[:3], ctx.grids[0]), dtype).to(w_dtype)
        return dx, dw, *[None] * 8


def _operand(tensors: Any, grid: Grid | None) -> Operand:
    data, step, offset = tensors
    return Operand(data, grid, step, offset)


class FakeQuantLinear(nn.Linear):
    """An `nn.Linear` whose product is quantised by `spec`; the same parameters, and those that the method learns.

    Input (..., in_features), output (..., out_features). Computes in the autocast dtype if one is on, else in the
    weight's dtype; float16 is computed in float32 and cast back, because a product of codes can leave its range.

    Attributes:
        spec: method and bits.
        weight_quantizer, act_quantizer: modules, or None for a factor that is not quantised.
        block_size: of the Hadamard transform; 1: none.
        input_norm: RMSNorm before the layer, for methods that have one.
        quantized: False computes the plain product.
        blending: whether quantisation is being faded in, to the share `strength` (`questlm.quant.gradual`).
    """

    spec: QuantSpec
    weight_quantizer: Quantizer | None
    act_quantizer: Quantizer | None
    block_size: int
    input_norm: nn.RMSNorm | None
    strength: Tensor | None
    quantized: bool
    blending: bool

    @classmethod
    def from_linear(cls, linear: nn.Linear, spec: QuantSpec) -> FakeQuantLinear:
        """Wrap `linear`, sharing its parameters (on any device, meta included).

        Raises:
            ConfigError: unknown method, a combination that makes no sense, or no Hadamard block divides the inputs.
        """
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.spec, layer.quantized, layer.blending = spec, True, False
        quantizers = layer_quantizers(spec, linear.out_features, linear.in_features)
        layer.weight_quantizer, layer.act_quantizer, layer.block_size = quantizers
        layer.input_norm = (
            nn.RMSNorm(linear.in_features, eps=_NORM_EPS) if find_method(spec.method).input_norm else None
        )
        for module in (layer.weight_quantizer, layer.act_quantizer, layer.input_norm):
            if module is not None:
                module.to(device=linear.weight.device, dtype=linear.weight.dtype)
        fades = gradual_share(spec) > 0
        layer.register_buffer("strength", torch.ones((), device=linear.weight.device) if fades else None)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """The plain layer again, sharing the same parameters; what the method has learned is left behind."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    @property
    def form(self) -> LinearFormat:
        """Block size and grids."""
        weight, act = (q.grid if q is not None else None for q in (self.weight_quantizer, self.act_quantizer))
        return LinearFormat(self.block_size, weight, act)

    def quantized_weight(self) -> Operand:
        """Codes (out, in) uint8 and steps (out, 1) as the forward pass uses them, in the Hadamard domain.

        Sparse bf16 weights are not codes: their operand holds the values.

        Raises:
            ValueError: the weight of this layer is not quantised (16 bits).
        """
        if self.weight_quantizer is None:
            raise ValueError("the weight of this layer is not quantised (16 bits)")
        with torch.no_grad():
            return self.weight_quantizer.operand(self.weight)

    def rounded_weight(self) -> Tensor:
        """Q(W): what rounding makes of the weight, (out, in), back in its own domain; no gradient."""
        if self.weight_quantizer is None:
            return self.weight.detach()
        return ops.hadamard(ops.operand_values(self.quantized_weight()), self.block_size).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """y = x_q w_q^T + b."""
        if self.input_norm is not None:
            assert self.input_norm.eps is not None
            input = ops.rms_norm(input, self.input_norm.weight, self.input_norm.eps)
        if not self.quantized:
            return super().forward(input)
        dtype = ops.autocast_dtype(input) or self.weight.dtype
        y = self._product(input.reshape(-1, self.in_features), ops.compute_dtype(dtype))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(dtype).reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.spec.label}, block_size={self.block_size}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.blending = self.strength is not None and not self.strength.is_meta and bool(self.strength < 1)

    def _product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self._quantized_product(x, self.weight, self.weight_quantizer, dtype)

    def _quantized_product(self, x: Tensor, w: Tensor, quantizer: Quantizer | None, dtype: torch.dtype) -> Tensor:
        """x_q w_q^T of rows (tokens, K) and (out, K), w by `quantizer`."""
        factors = (self.act_quantizer, quantizer)
        if self.blending:
            return self._blended_product(x, w, factors, dtype)
        if all(type(q) in (DynamicQuantizer, type(None)) for q in factors):
            maskings = tuple((None, None) if q is None else (q.grid, q.mask_bound) for q in factors)
            masked: Tensor = _MaskedProduct.apply(x, w, maskings, self.block_size, dtype)
            return masked
        (x_values, x_operand), (w_values, w_operand) = (
            _values_and_operand(each, q, self.block_size, dtype) for each, q in zip((x, w), factors, strict=True)
        )
        grids = (x_operand.grid, w_operand.grid)
        tensors = (*_tensors(x_operand), *_tensors(w_operand))
        y: Tensor = _CodedProduct.apply(x_values, w_values, grids, dtype, *tensors)
        return y

    def _blended_product(
        self, x: Tensor, w: Tensor, factors: tuple[Quantizer | None, Quantizer | None], dtype: torch.dtype
    ) -> Tensor:
        """The product of z + strength (Q(z) - z) for both factors (arXiv 2505.08823)."""
        if self.strength is None:
            raise ConfigError("this layer was prepared without a gradual schedule; set quant.gradual")
        mixed = []
        for each, quantizer in zip((x, w), factors, strict=True):
            rotated = ops.hadamard(each, self.block_size) if self.block_size > 1 else each
            values = rotated if quantizer is None else quantizer(each)
            mixed.append(rotated + self.strength.to(rotated.dtype) * (values - rotated))
        with without_autocast(x):
            return mixed[0].to(dtype) @ mixed[1].to(dtype).T


def _values_and_operand(
    x: Tensor, quantizer: Quantizer | None, block_size: int, dtype: torch.dtype
) -> tuple[Tensor, Operand]:
    if quantizer is None:
        rotated = ops.hadamard(x, block_size) if block_size > 1 else x
        return rotated, Operand(rotated.detach().to(dtype))
    with torch.no_grad():
        operand = quantizer.operand(x)
    return quantizer.values(x, operand), operand


def _tensors(operand: Operand) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return operand.data, operand.step, operand.offset
