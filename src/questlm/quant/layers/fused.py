"""Norms and activations that quantise their output for the linear layers behind them.

A model declares which layers are connected: a module's attribute `feeds` lists, for each norm or activation inside it,
the linear layers that consume its output and that no other module consumes; `takes` lists the layers whose outputs an
activation consumes. Where all consumers quantise their input in the same way, `questlm.prepare` replaces the norm by
one that quantises once for all of them, on a GPU in the same pass over memory. The layers gate and up leave their
products to the activation behind them, which returns one gradient for both. The numbers are those of the unfused
layers; only the backward pass of the norm sees r / rms rounded to the dtype of the computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from questlm import ops
from questlm.ops import ResidualNorm, SwiGLU
from questlm.quant.autograd import Pending, Rows, norm_rows, swiglu_rows
from questlm.quant.layers.linear import FakeQuantLinear
from questlm.quant.layers.mode import Mode
from questlm.quant.quantizers import MaskedRounding, refuse_transforms

__all__ = ["QuantizedNorm", "QuantizedSwiGLU", "fusions"]


class _Consumers(NamedTuple):
    """The quantised layers that take one module's output, and the rounding of the input that they share."""

    layers: tuple[FakeQuantLinear, ...]
    rounding: MaskedRounding

    @property
    def quantized(self) -> bool:
        """Whether all consumers quantise now; a dense one needs its input as a tensor."""
        return all(layer.mode is not Mode.DENSE for layer in self.layers)


class QuantizedNorm(ResidualNorm):
    """A norm that quantises its output for the layers behind it; the same parameters as the norm that it replaces.

    Attributes:
        fused: False leaves quantising to the layers (`questlm.quant.unfused`).
    """

    fused: bool
    _consumers: _Consumers

    @classmethod
    def from_norm(cls, norm: ResidualNorm, consumers: _Consumers) -> QuantizedNorm:
        """Wrap `norm`, sharing its gain."""
        quantized = cls(norm.normalized_shape, eps=norm.eps, device="meta")
        quantized.weight, quantized.fused, quantized._consumers = norm.weight, True, consumers
        return quantized.train(norm.training)

    def to_plain(self) -> ResidualNorm:
        """Return a plain norm that shares the gain."""
        norm = ResidualNorm(self.normalized_shape, eps=self.eps, device="meta")
        norm.weight = self.weight
        return norm.train(self.training)

    def forward(  # type: ignore[override]
        self, x: Tensor, delta: Tensor | None = None
    ) -> tuple[Tensor, Tensor | Rows]:
        """Return r = x + delta (..., K) and the norm of r: quantised rows, or a tensor where a consumer is dense."""
        if not (self.fused and self._consumers.quantized):
            return super().forward(x, delta)
        refuse_transforms()
        assert self.eps is not None
        dtype = ops.autocast_dtype(x) or self.weight.dtype
        return norm_rows(x, delta, self.weight, self.eps, self._consumers.rounding, dtype)


class QuantizedSwiGLU(SwiGLU):
    """SwiGLU that quantises its output for the layers behind it.

    Attributes:
        fused: False leaves quantising to the layers (`questlm.quant.unfused`).
    """

    fused: bool
    _consumers: _Consumers

    @classmethod
    def from_activation(cls, activation: SwiGLU, consumers: _Consumers) -> QuantizedSwiGLU:
        """Replace `activation`."""
        quantized = cls()
        quantized.fused, quantized._consumers = True, consumers
        return quantized.train(activation.training)

    def to_plain(self) -> SwiGLU:
        """Return a plain activation."""
        return SwiGLU().train(self.training)

    def forward(self, gate: Tensor | Pending, up: Tensor | Pending) -> Tensor | Rows:  # type: ignore[override]
        """Return silu(gate) * up (..., K): quantised rows, or a tensor where a consumer is dense."""
        if not (self.fused and self._consumers.quantized):
            plain = (each.computed() if isinstance(each, Pending) else each for each in (gate, up))
            return super().forward(*plain)
        first = gate.rows.carrier if isinstance(gate, Pending) else gate
        return swiglu_rows(gate, up, self._consumers.rounding, ops.autocast_dtype(first) or first.dtype)


def fusions(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield (norm or activation, the module that replaces it) for each that can quantise for its consumers."""
    for module in model.modules():
        for source, names in getattr(module, "feeds", {}).items():
            plain, layers = module.get_submodule(source), [module.get_submodule(name) for name in names]
            consumers = _consumers(layers)
            if consumers is None:
                continue
            if type(plain) is ResidualNorm and plain.eps is not None and plain.weight is not None:
                yield plain, QuantizedNorm.from_norm(plain, consumers)
            elif type(plain) is SwiGLU:
                for name in getattr(module, "takes", {}).get(source, ()):
                    layer = module.get_submodule(name)
                    if isinstance(layer, FakeQuantLinear) and layer._parameters["bias"] is None:
                        layer.defers = True
                yield plain, QuantizedSwiGLU.from_activation(plain, consumers)


def _consumers(modules: Sequence[nn.Module]) -> _Consumers | None:
    """The modules as consumers of one output, or None where they do not all quantise their input in the same way."""
    layers = tuple(module for module in modules if isinstance(module, FakeQuantLinear) and module.takes_rows)
    roundings = {None if layer.act_quantizer is None else layer.act_quantizer.rounding for layer in layers}
    rounding = roundings.pop() if len(roundings) == 1 and len(layers) == len(modules) else None
    return None if rounding is None else _Consumers(layers, rounding)
