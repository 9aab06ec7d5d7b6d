"""Swap a model's linear layers for quantised ones, in place, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.quant.linear import FakeQuantLinear
from questlm.quant.methods import find_method
from questlm.quant.stored import StoredEmbedding, StoredLinear

__all__ = ["FilterFn", "dense", "prepare", "quantized_layers", "restore"]

M = TypeVar("M", bound=nn.Module)
FilterFn = Callable[[nn.Module, str], bool]
"""(module, its dotted name) -> whether to quantise this linear layer."""


def prepare(model: M, spec: QuantSpec, filter_fn: FilterFn | None = None) -> M:
    """Quantise the linear layers of `model`, in place; parameters and state dict stay as they are.

    Args:
        model: any module with `nn.Linear` layers, on any device, meta included.
        spec: method and bits. With 16 bits for weights and activations no layer is swapped.
        filter_fn: which linear layers to quantise; by default all but the output head (a layer named `lm_head`, or
            one that shares an embedding's weight). Embeddings and the layers left out take the form
            `spec.embeddings`.

    Returns:
        `model` (or its replacement, where `model` itself is a single linear layer).

    Raises:
        ConfigError: an unknown method, a model prepared already, a layer that no Hadamard block divides, nothing to
            quantise, or a module that would go past its quantised layers. The model is then unchanged.
    """
    find_method(spec.method)
    if any(isinstance(m, FakeQuantLinear | StoredEmbedding | StoredLinear) for m in model.modules()):
        raise ConfigError("this model is prepared already; call questlm.restore(model) first")
    encoders = any(isinstance(m, nn.TransformerEncoderLayer) for m in model.modules())
    if encoders and torch.backends.mha.get_fastpath_enabled():
        raise ConfigError(
            "the fast path of nn.TransformerEncoderLayer goes past its linear layers in evaluation, so they would not "
            "be quantised there; call torch.backends.mha.set_fastpath_enabled(False) first"
        )
    chosen = filter_fn or _all_but_the_head(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        # Subclasses of nn.Linear may be used by others through their weight alone, as in nn.MultiheadAttention.
        if type(module) is nn.Linear and spec.enabled and chosen(module, name):
            try:
                replacements[module] = FakeQuantLinear.from_linear(module, spec)
            except ConfigError as problem:
                raise ConfigError(f"layer {name or 'model'!r}: {problem}") from None
        elif type(module) is nn.Linear and spec.embeddings != "float":
            replacements[module] = StoredLinear.from_linear(module, spec.embeddings)
        elif type(module) is nn.Embedding and spec.embeddings != "float":
            replacements[module] = StoredEmbedding.from_embedding(module, spec.embeddings)
    if spec.enabled and not any(isinstance(new, FakeQuantLinear) for new in replacements.values()):
        raise ConfigError("nothing to quantise: the model has no nn.Linear layer that filter_fn accepts")
    return _replace(model, replacements)


def restore(model: M) -> M:
    """Undo `prepare`: plain layers again, in place, with the same parameters."""
    replacements: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, FakeQuantLinear):
            replacements[module] = module.to_linear()
        elif isinstance(module, StoredEmbedding | StoredLinear):
            replacements[module] = module.to_plain()
    return _replace(model, replacements)


def quantized_layers(model: nn.Module) -> dict[str, FakeQuantLinear]:
    """The quantised layers of a prepared model, by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantLinear)}


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Run the model without quantising inside the block: the same weights, plain products."""
    before = {layer: layer.quantized for layer in quantized_layers(model).values()}
    for layer in before:
        layer.quantized = False
    try:
        yield
    finally:
        for layer, quantized in before.items():
            layer.quantized = quantized


def _all_but_the_head(model: nn.Module) -> FilterFn:
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return lambda module, name: name.rpartition(".")[2] != "lm_head" and id(module.weight) not in embeddings


def _replace(model: M, replacements: dict[nn.Module, nn.Module]) -> M:
    for old, new in replacements.items():
        vars(new).update({name: value for name, value in vars(old).items() if "hooks" in name})
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a layer used twice
            if child in replacements:
                setattr(parent, name, replacements[child])
    replaced: M = replacements.get(model, model)  # type: ignore[assignment]
    return replaced
