"""Begin the training with more bits than the model is to have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Self

from torch import nn
from torch.distributed.tensor import DTensor

from questlm.config import TrainConfig
from questlm.errors import ConfigError, quoted
from questlm.quant import FakeQuantLinear, Quantizer, quantized_layers
from questlm.quant.layers.mode import Mode
from questlm.quant.methods import layer_quantizers
from questlm.quant.quantizers import MaskedRounding
from questlm.training.recipes.base import Beginning, Moment, Recipe

__all__ = ["MoreBitsFirst"]

_DENSE = 16


class MoreBitsFirst(Recipe):
    """Trains up to a share of the budget on the grids of more bits, or with 16 bits without quantising.

    A model that has learned in more bits is a better start for few than random weights are
    (`studies/better-recipe`; arXiv 2509.22935 begins without quantising). Factors that have as many bits already stay
    as they are, and validation before the change is of the model with more bits.
    """

    def __init__(self, bits: int, share: float) -> None:
        self.bits, self.share = bits, share
        self._roundings: list[tuple[Quantizer, MaskedRounding, MaskedRounding]] = []  # own, and with more bits

    @classmethod
    def from_settings(cls, train: TrainConfig, model: nn.Module) -> Self | None:
        """Asked for by `train.first_bits`."""
        return None if train.first_bits is None else cls(train.first_bits, train.first_bits_share)

    def begin(self, beginning: Beginning) -> Mapping[str, str]:
        """Look up the grids.

        Raises:
            ConfigError: the model has no fewer bits, its quantisers learn, it is faded in, or its weights are sharded.
        """
        layers = quantized_layers(beginning.model)
        if any(layer.strength is not None for layer in layers.values()):
            raise ConfigError("train.first_bits and quant.gradual both decide how training begins; set one of them")
        if any(isinstance(parameter, DTensor) for parameter in beginning.model.parameters()):
            raise ConfigError("train.first_bits needs whole weights in every process; set train.parallel=ddp")
        if self.bits != _DENSE:
            self._roundings = [found for name, layer in layers.items() for found in _roundings(name, layer, self.bits)]
        if not (layers if self.bits == _DENSE else self._roundings):
            raise ConfigError(f"train.first_bits is {self.bits}, and nothing in this model has fewer bits")
        return {}

    def before_step(self, moment: Moment) -> None:
        """Change to the model's own bits once the share of the budget is spent."""
        first = moment.done < self.share
        changed = _set_modes(moment.model, first) if self.bits == _DENSE else self._set_roundings(first)
        if changed:
            moment.record_again()

    def _set_roundings(self, first: bool) -> bool:
        wanted = [(quantizer, more if first else own) for quantizer, own, more in self._roundings]
        others = [(quantizer, rounding) for quantizer, rounding in wanted if quantizer.rounding != rounding]
        for quantizer, rounding in others:
            quantizer.set_rounding(rounding)
        return bool(others)


def _set_modes(model: nn.Module, dense: bool) -> bool:
    mode = Mode.DENSE if dense else Mode.QUANTIZED
    others = [layer for layer in quantized_layers(model).values() if layer.mode is not mode]
    for layer in others:
        layer.mode = mode
    return bool(others)


def _roundings(
    name: str, layer: FakeQuantLinear, bits: int
) -> Iterator[tuple[Quantizer, MaskedRounding, MaskedRounding]]:
    """Each quantiser of a layer with fewer bits: itself, its own rounding, and that of `bits`."""
    wide = {part: bits for part in ("weight_bits", "act_bits") if getattr(layer.spec, part) != 16}
    more = layer_quantizers(layer.spec.model_copy(update=wide), layer.out_features, layer.in_features)
    for quantizer, other in ((layer.weight_quantizer, more.weight), (layer.act_quantizer, more.act)):
        if quantizer is None or other is None:
            continue
        if quantizer.rounding is None or other.rounding is None:
            raise ConfigError(
                f"train.first_bits is {bits}, but quantisers of the layer {quoted(name)} ({layer.spec.label}) learn or "
                f"have rounded steps, and cannot take a grid of other bits; set it to {_DENSE}"
            )
        if other.rounding.grid.levels > quantizer.rounding.grid.levels:
            yield quantizer, quantizer.rounding, other.rounding
