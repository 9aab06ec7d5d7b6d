"""Swap a model's linear layers for quantised ones, in place, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import nn

from questlm.config import QuantSpec
from questlm.errors import ConfigError, quoted
from questlm.quant.layer_formats import branch_axis
from questlm.quant.layers.branches import BranchedLinear
from questlm.quant.layers.fused import QuantizedNorm, QuantizedSwiGLU, fusions
from questlm.quant.layers.linear import FakeQuantLinear
from questlm.quant.layers.mode import LayerMode, Mode
from questlm.quant.layers.stored import StoredEmbedding, StoredLinear
from questlm.quant.methods import find_method
from questlm.quant.overrides import FilterFn, layer_specs
from questlm.quant.quantizers import Quantizer
from questlm.quant.skipped import adapter_modules, is_plain_linear, skipped_layers

__all__ = ["FilterFn", "dense", "learned_parameters", "prepare", "quantized_layers", "restore", "unfused"]

M = TypeVar("M", bound=nn.Module)


def prepare(model: M, spec: QuantSpec, filter_fn: FilterFn | None = None) -> M:
    """Replace the linear layers of `model` by quantised ones, in place. They share its parameters.

    Layers that are no plain `nn.Linear` (subclasses, weights computed by `torch.nn.utils.parametrize`) and adapters
    stay as they are: `questlm.quant.skipped_layers(model)` lists them with the reasons.

    Args:
        model: any module with `nn.Linear` layers, on any device, meta included.
        spec: method and bits. With 16 bits for weights and activations no layer is quantised; with embeddings="float"
            too, the model stays as it is.
        filter_fn: which linear layers to quantise; by default all but the output head (a layer named `lm_head`, or
            one that shares an embedding's weight), unless `spec.overrides` names it. Embeddings and the layers left
            out are rounded to the stored dtype `spec.embeddings`.

    What a method learns (step sizes, clips, offsets, output scales) is stored in the model's state dict together with
    the method, bits and format, and `load_state_dict` raises CheckpointError for a model that was prepared differently.
    A method that learns nothing adds nothing: its state is the plain weights, which may be loaded at any width.

    Returns:
        `model` (or its replacement, where `model` itself is a single linear layer).

    Raises:
        ConfigError: an unknown method, a combination that makes no sense, an override that names no layer, a model
            prepared already, a layer whose input size no Hadamard block divides, nothing to quantise, or a module that
            would bypass its quantised layers. The model is then unchanged.
    """
    find_method(spec.method)
    _require_preparable(model)
    # Other modules may read the weight of a subclass of nn.Linear directly, as nn.MultiheadAttention does.
    adapters = adapter_modules(model)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and is_plain_linear(module) and module not in adapters
    }
    specs = layer_specs(model, linears, spec, filter_fn)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if (chosen := specs.get(name)) is not None:
            try:
                replacements[module] = _quantized(linears[name], name, chosen)
            except ConfigError as problem:
                raise ConfigError(f"layer {quoted(name or 'model')}: {problem}") from None
        elif name in linears and spec.embeddings != "float":
            replacements[module] = StoredLinear.from_linear(linears[name], spec.embeddings, spec.steps)
        elif type(module) is nn.Embedding and spec.embeddings != "float":
            replacements[module] = StoredEmbedding.from_embedding(module, spec.embeddings, spec.steps)
    if spec.enabled and not specs:
        skipped = "".join(f"; {quoted(name)} is left out: {why}" for name, why in [*skipped_layers(model).items()][:1])
        raise ConfigError(
            f"nothing to quantise: no plain nn.Linear layer but the output head, or none that filter_fn and "
            f"quant.overrides choose{skipped}"
        )
    prepared = _replace(model, replacements)
    return _replace(prepared, dict(fusions(prepared)))


def restore(model: M) -> M:
    """Undo `prepare`: replace the quantised layers by plain ones that share their parameters, in place."""
    replacements: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, FakeQuantLinear):
            replacements[module] = module.to_linear()
        elif isinstance(module, StoredEmbedding | StoredLinear | QuantizedNorm | QuantizedSwiGLU):
            replacements[module] = module.to_plain()
    return _replace(model, replacements)


def quantized_layers(model: nn.Module) -> dict[str, FakeQuantLinear]:
    """Return the quantised layers of a prepared model, by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantLinear)}


def learned_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the quantisers of a prepared model learn (such as step sizes), by dotted name."""
    return {
        f"{name}.{own}": parameter
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
        for own, parameter in module.named_parameters(recurse=False)
    }


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Run the model without quantising inside the block: the same weights, plain products. Blocks may nest.

    Raises:
        RuntimeError: inside `cached_weights(through_parameters=True)`, or where weights are gathered as codes.
    """
    before: list[tuple[FakeQuantLinear, LayerMode]] = []
    try:
        for layer in quantized_layers(model).values():
            mode, layer.mode = layer.mode, Mode.DENSE
            before.append((layer, mode))
        yield
    finally:
        for layer, mode in before:
            layer.mode = mode


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Let each quantised layer inside the block quantise its own input, so that it can be seen as a tensor."""
    modules = [module for module in model.modules() if isinstance(module, QuantizedNorm | QuantizedSwiGLU)]
    before = [module.fused for module in modules]
    for module in modules:
        module.fused = False
    try:
        yield
    finally:
        for module, fused in zip(modules, before, strict=True):
            module.fused = fused


def _require_preparable(model: nn.Module) -> None:
    """Raise ConfigError for a model that is prepared already, or that would bypass its quantised layers."""
    if any(isinstance(m, FakeQuantLinear | StoredEmbedding | StoredLinear) for m in model.modules()):
        raise ConfigError("this model is prepared already; call questlm.restore(model) first")
    encoders = any(isinstance(m, nn.TransformerEncoderLayer) for m in model.modules())
    if encoders and torch.backends.mha.get_fastpath_enabled():
        raise ConfigError(
            "the fast path of nn.TransformerEncoderLayer bypasses its linear layers in evaluation, so they would not "
            "be quantised there; call torch.backends.mha.set_fastpath_enabled(False) first"
        )


def _quantized(linear: nn.Linear, name: str, spec: QuantSpec) -> FakeQuantLinear:
    axis = branch_axis(spec, name)
    return FakeQuantLinear.from_linear(linear, spec) if axis is None else BranchedLinear.split(linear, spec, axis)


def _replace(model: M, replacements: dict[nn.Module, nn.Module]) -> M:
    for old, new in replacements.items():
        vars(new).update({name: value for name, value in vars(old).items() if "hooks" in name})
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a layer used twice
            if child in replacements:
                setattr(parent, name, replacements[child])
    return cast(M, replacements.get(model, model))
