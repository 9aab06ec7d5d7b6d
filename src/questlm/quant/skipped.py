"""Which layers `prepare` does not quantise although they multiply by a matrix, and why.

Only of a plain `nn.Linear` whose weight is a parameter is it certain that the weight is used as x W^T and in no other
way. Adapters (LoRA and its relatives) are small products beside a frozen layer; they are trained in full precision and
merged at the end.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

from questlm.quant.layers.linear import FakeQuantLinear
from questlm.quant.layers.stored import StoredEmbedding, StoredLinear

__all__ = ["adapter_modules", "is_plain_linear", "skipped_layers"]

_ADAPTERS = {"lora_a", "lora_b"}
"""Names of LoRA's factors in libraries that do not mark adapters, such as torchtune."""


def is_plain_linear(module: nn.Module) -> bool:
    """Return whether `module` is an `nn.Linear`, not a subclass, whose weight is a parameter and not computed."""
    return type(module) is nn.Linear and module._parameters.get("weight") is not None


def adapter_modules(model: nn.Module) -> set[nn.Module]:
    """Return all modules inside adapters.

    PEFT's layers (https://github.com/huggingface/peft, tuners_utils.BaseTunerLayer) wrap the layer that they adapt as
    `base_layer` and list in `adapter_layer_names` which of their attributes hold adapters.
    """
    found: set[nn.Module] = set()
    for owner in model.modules():
        named = {str(name) for name in getattr(owner, "adapter_layer_names", ())}
        for name, child in owner.named_children():
            if name in named or name.lower() in _ADAPTERS:
                found.update(child.modules())
    return found


def skipped_layers(model: nn.Module) -> dict[str, str]:
    """Return the layers that `prepare` does not quantise, by dotted name, each with the reason.

    Works before and after `prepare`. Every linear layer and every module with a matrix of its own is examined. Not
    listed are embeddings, and plain linear layers that the caller left out: by `filter_fn`, an override, or as the
    output head.
    """
    adapters, parts = adapter_modules(model), _parts_of_layers(model)
    reasons = {}
    for name, module in model.named_modules():
        if module in parts:
            continue
        reason = _adapter(module) if module in adapters else _reason(module)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _parts_of_layers(model: nn.Module) -> set[nn.Module]:
    """Return modules that are not reported: quantised and stored layers, embeddings, and parametrizations."""
    ours = (FakeQuantLinear, StoredEmbedding, StoredLinear, nn.Embedding)
    found: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, ours):
            found.update(module.modules())  # with their quantisers, whose step sizes may be matrices
        elif parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.Module)
            found.update(module.parametrizations.modules())
    return found


def _adapter(module: nn.Module) -> str | None:
    return "it is part of an adapter, which is trained as it is" if isinstance(module, nn.Linear) else None


def _reason(module: nn.Module) -> str | None:
    if is_plain_linear(module):
        return None
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        if parametrize.is_parametrized(module):
            return (
                "its weight is computed by torch.nn.utils.parametrize; call remove_parametrizations(layer, 'weight') "
                "before prepare"
            )
        if "weight" not in module._parameters:
            sources = ", ".join(name for name in module._parameters if name.startswith("weight"))
            return f"its weight is computed from {sources} before each call; make it a parameter before prepare"
        return f"it is a {kind}, a subclass of nn.Linear, which may use its weight in other ways"
    matrices = [name for name, value in module.named_parameters(recurse=False) if _is_matrix(value)]
    if matrices:
        return f"it is a {kind} that holds {', '.join(matrices)} itself; only nn.Linear is quantised"
    return None


def _is_matrix(value: Tensor) -> bool:
    return sum(size > 1 for size in value.shape) >= 2
