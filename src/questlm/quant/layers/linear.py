"""A linear layer that computes with codes, and trains through them.

Forward (arXiv 2502.05003, section 3):   y  = x_q w_q^T, both factors in the Hadamard domain.
Backward, in the precision of the layer: dx = IHT(M_x * (dy w_q)),  dw = IHT(M_w * (dy^T x_q)).

The codes are multiplied as they are and each row's step size is applied to the product, which keeps the integer part
exact. `questlm.quant.autograd` has the gradients, and says what is saved for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.grid import Factor, LayerFormat
from questlm.ops import Operand
from questlm.quant.autograd import Pending, Rows, encode_rows, product
from questlm.quant.layer_formats import INPUT_NORM_EPS, require_packable
from questlm.quant.layers.corrections import InputMean, diagonal_product
from questlm.quant.layers.fading import blended_product
from questlm.quant.layers.mode import NO_SCHEDULE, CachedWeight, LayerMode, Mode, check_change
from questlm.quant.methods import find_method, gradual_share, layer_quantizers
from questlm.quant.quantizers import Quantizer, refuse_transforms

__all__ = ["FakeQuantLinear"]


class FakeQuantLinear(nn.Linear):
    """An `nn.Linear` whose input and weight are quantised by `spec`. It shares the parameters of the layer it replaces.

    Input (..., in_features), output (..., out_features). Computes in the autocast dtype if one is on, else in the
    weight's dtype; float16 is computed in float32 and cast back, because a product of codes can leave its range.

    Attributes:
        spec: method and bits.
        weight_quantizer, act_quantizer: modules, or None for a factor that is not quantised.
        block_size: entries that the Hadamard transform rotates together; 1: no transform.
        input_norm: RMSNorm before the layer, for methods that have one.
        input_mean: the running mean that is taken off the input before it is quantised, for methods that have one.
        diagonal: the diagonal beside the quantised matrix, (max(in, out),), for methods that have one.
        strength: buffer, the share in [0, 1] to which quantisation is faded in; None without a gradual schedule.
        mode: how passes compute now; changed by `questlm.quant.dense`, `cached_weights` and
            `set_quantization_strength`.
        defers: whether the product of quantised rows is left to the activation behind it
            (`questlm.quant.layers.fused`).
    """

    spec: QuantSpec
    weight_quantizer: Quantizer | None
    act_quantizer: Quantizer | None
    block_size: int
    input_norm: nn.RMSNorm | None
    input_mean: InputMean | None
    diagonal: nn.Parameter | None
    strength: Tensor | None
    defers: bool = False
    _mode: LayerMode

    @classmethod
    def from_linear(cls, linear: nn.Linear, spec: QuantSpec) -> FakeQuantLinear:
        """Wrap `linear`, sharing its parameters (on any device, meta included).

        Raises:
            ConfigError: unknown method, a combination that makes no sense, or no Hadamard block divides the inputs.
        """
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.spec, layer._mode = spec, Mode.QUANTIZED
        quantizers = layer_quantizers(spec, linear.out_features, linear.in_features)
        layer.weight_quantizer, layer.act_quantizer, layer.block_size = quantizers
        method, fades = find_method(spec.method), gradual_share(spec) > 0
        layer.input_norm = nn.RMSNorm(linear.in_features, eps=INPUT_NORM_EPS) if method.input_norm else None
        layer.input_mean = InputMean(linear.in_features) if method.centers else None
        if fades and method.centers:
            raise ConfigError(f"{spec.method} takes off the mean of its inputs and cannot be faded in; gradual is 0")
        for module in (layer.weight_quantizer, layer.act_quantizer, layer.input_norm, layer.input_mean):
            if module is not None:
                module.to(device=linear.weight.device, dtype=linear.weight.dtype)
        longer = max(linear.in_features, linear.out_features)
        layer.diagonal = nn.Parameter(linear.weight.new_zeros(longer)) if method.diagonal else None
        layer.register_buffer("strength", torch.ones((), device=linear.weight.device) if fades else None)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return an `nn.Linear` that shares weight and bias. Learned step sizes and the input norm are dropped."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def quantized_weight(self) -> Operand:
        """Return the codes (out, in) uint8 and step sizes (out, 1) that the forward pass uses, in the Hadamard domain.

        Sparse bf16 weights are not codes: their operand holds the values.

        Raises:
            ValueError: the weight of this layer is not quantised (16 bits).
        """
        if self.weight_quantizer is None:
            raise ValueError("the weight of this layer is not quantised (16 bits)")
        with torch.no_grad():
            return self.weight_quantizer.operand(self.weight)

    def packed_format(self) -> LayerFormat:
        """Return how a packed model stores this layer: block size, grids, offsets, norm and narrow branch.

        Raises:
            ConfigError: it has something that the packed format does not hold.
        """
        require_packable(self.spec.method)
        weight = act = None
        if (quantizer := self.weight_quantizer) is not None:
            has_offset = quantizer.grid is not None and self.quantized_weight().offset is not None
            weight = Factor(quantizer.grid, has_offset, quantizer.values_format, quantizer.steps)
        if (quantizer := self.act_quantizer) is not None:
            act = Factor(quantizer.grid, quantizer.offset() is not None)
        norm = None if self.input_norm is None else self.input_norm.eps
        return LayerFormat(self.block_size, weight, act, norm)

    def quantized_narrow_branch(self) -> Operand | None:
        """Return codes and step sizes of an 8-bit branch beside the weight, or None where the layer has no branches."""
        return None

    def rounded_weight(self) -> Tensor:
        """Return Q(W), the weight after rounding, (out, in), rotated back; no gradient."""
        if self.weight_quantizer is None:
            return self.weight.detach()
        return ops.hadamard(ops.operand_values(self.quantized_weight()), self.block_size).to(self.weight.dtype)

    @property
    def _float8(self) -> bool:
        return self.spec.backward == "float8"

    @property
    def mode(self) -> LayerMode:
        """How passes compute now.

        Raises (when set):
            ConfigError, RuntimeError: the layer cannot be in this mode, or not now (`check_change`).
        """
        return self._mode

    @mode.setter
    def mode(self, mode: LayerMode) -> None:
        check_change(self._mode, mode, fades=self.strength is not None, rounds_weight=self.rounds_weight)
        self._mode = mode

    def set_strength(self, strength: float, fading: bool) -> None:
        """Set the share to which quantisation is faded in, and whether passes still mix (`questlm.quant.gradual`).

        Raises:
            ConfigError: the layer was prepared without a gradual schedule.
            RuntimeError: inside `dense` or `cached_weights`, whose end would undo it.
        """
        if self.strength is None:
            raise ConfigError(NO_SCHEDULE)
        self._set_fading(fading)
        self.strength.fill_(strength)

    def _set_fading(self, fading: bool) -> None:
        if self._mode not in (Mode.QUANTIZED, Mode.FADING_IN):
            raise RuntimeError(
                "fading in cannot change inside dense or cached_weights, whose end sets the mode from before; set the "
                "strength, or load the state, outside of it"
            )
        self.mode = Mode.FADING_IN if fading else Mode.QUANTIZED

    @property
    def cached_weight(self) -> CachedWeight | None:
        """The cached codes that the forward pass uses now, or None."""
        return self._mode if isinstance(self._mode, CachedWeight) else None

    @property
    def rounds_weight(self) -> bool:
        """Whether codes and gradient of the weight follow from rounding alone, so that the codes can be cached."""
        return self.weight_quantizer is not None and self.weight_quantizer.rounding is not None

    @property
    def caches_weight(self) -> bool:
        """Whether the weight's codes can be cached from now until the end of an optimizer step."""
        return self._mode is Mode.QUANTIZED and self.rounds_weight

    @property
    def takes_rows(self) -> bool:
        """Whether the input can come as rows that a norm or an activation before the layer has quantised."""
        parts = (self.input_norm, self.input_mean, self.diagonal, self.strength)
        return all(part is None for part in parts) and self.weight.dtype is not torch.float16

    def forward(self, input: Tensor | Rows) -> Tensor | Pending:  # type: ignore[override]
        """Compute y = x_q w_q^T + b for a tensor, or for rows that a norm or an activation has quantised already."""
        if isinstance(input, Rows):
            return self._of_rows(input)
        if self.input_norm is not None:
            assert self.input_norm.eps is not None
            input = ops.rms_norm(input, self.input_norm.weight, self.input_norm.eps)
        if self._mode is Mode.DENSE:
            return super().forward(input)
        refuse_transforms()
        dtype = ops.autocast_dtype(input) or self.weight.dtype
        if self.act_quantizer is not None and self.act_quantizer.rounding is not None:
            input = input.to(dtype)  # as a plain linear layer does; learning quantisers see the unrounded input
        y = self._corrected_product(input.reshape(-1, self.in_features), ops.compute_dtype(dtype))
        return self._with_bias(y, dtype).reshape(*input.shape[:-1], self.out_features)

    def _of_rows(self, rows: Rows) -> Tensor | Pending:
        dtype = ops.autocast_dtype(rows.carrier) or self.weight.dtype
        weight = self.weight_rows(ops.compute_dtype(dtype))
        if self.defers:
            return Pending(rows, weight, self._float8)
        return self._with_bias(product(rows, weight, ops.compute_dtype(dtype), self._float8), dtype)

    def _with_bias(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(dtype)

    def weight_rows(self, dtype: torch.dtype) -> Rows:
        """Return the weight as a factor of products in `dtype`, with its gradient."""
        if (cached := self.cached_weight) is not None:
            return cached.rows(self.weight, dtype)
        return encode_rows(self.weight, self.weight_quantizer, self.block_size, dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.spec.label}, block_size={self.block_size}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.strength is not None and not self.strength.is_meta:
            self._set_fading(bool(self.strength < 1))

    def _corrected_product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The product of rows (tokens, K), with what the method has beside it (`questlm.quant.layers.corrections`)."""
        if self.input_mean is None:
            y = self._product(x, dtype)
        else:
            mean = self.input_mean(x)
            constant = encode_rows(mean[None], None, self.block_size, dtype)
            y = self._product(x - mean, dtype) + product(constant, self.weight_rows(dtype), dtype, self._float8)
        return y if self.diagonal is None else y + diagonal_product(x, self.diagonal, self.out_features).to(y.dtype)

    def _product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.cached_weight is not None:
            rows = encode_rows(x, self.act_quantizer, self.block_size, dtype)
            return product(rows, self.weight_rows(dtype), dtype, self._float8)
        return self._quantized_product(x, self.weight, self.weight_quantizer, dtype)

    def _quantized_product(self, x: Tensor, w: Tensor, quantizer: Quantizer | None, dtype: torch.dtype) -> Tensor:
        """x_q w_q^T of rows (tokens, K) and (out, K), w by `quantizer`."""
        if self._mode is Mode.FADING_IN:
            assert self.strength is not None  # checked where the mode was set
            factors = ((x, self.act_quantizer), (w, quantizer))
            return blended_product(factors, self.strength, self.block_size, dtype)
        x_rows = encode_rows(x, self.act_quantizer, self.block_size, dtype)
        return product(x_rows, encode_rows(w, quantizer, self.block_size, dtype), dtype, self._float8)
