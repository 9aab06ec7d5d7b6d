"""Settings of each quantised layer: those of the model, changed by `quant.overrides` for the layers they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from questlm.config import LayerOverride, QuantSpec
from questlm.errors import ConfigError, quoted
from questlm.quant.patterns import override_of, plain_name, require_matches

__all__ = ["FilterFn", "layer_specs"]

FilterFn = Callable[[nn.Module, str], bool]
"""(module, its dotted name) -> whether to quantise this linear layer."""


def layer_specs(
    model: nn.Module, linears: Mapping[str, nn.Linear], spec: QuantSpec, filter_fn: FilterFn | None = None
) -> dict[str, QuantSpec]:
    """Return the settings of each layer to quantise, by dotted name.

    A pattern is a full dotted name, or its end after a dot, with * for any characters: 'mlp.down', 'layers.0.*',
    'lm_head'. Where several patterns match a layer, each setting comes from the most specific one: the one with fewer
    wildcards, then the longer one. The order of the patterns does not matter.

    Raises:
        ConfigError: a pattern that names no linear layer, or a head that shares the embedding's weight.
    """
    require_matches(linears, spec)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

    def by_default(linear: nn.Module, name: str) -> bool:
        return plain_name(name).rpartition(".")[2] != "lm_head" and id(linear.weight) not in embeddings

    chosen = filter_fn or by_default
    specs = {}
    for name, linear in linears.items():
        override = override_of(name, spec)
        own = spec.overridden(override or LayerOverride())
        if not own.quantizes or not (override is not None or chosen(linear, name)):
            continue
        if override is not None and id(linear.weight) in embeddings:
            raise ConfigError(
                f"quant.overrides: {quoted(name)} shares the embedding's weight, which is not quantised by a method; "
                f"leave it out, or give the model a head of its own (in settings model.tied_head = false)"
            )
        specs[name] = own
    return specs
