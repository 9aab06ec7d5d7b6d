"""Activation checkpointing: compute parts of the forward pass again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Recompute", "checkpoint_activations"]

Recompute = Literal["none", "mlp", "block"]


def checkpoint_activations(model: nn.Module, what: Recompute) -> None:
    """Make each block of `model.layers`, or each block's `mlp`, keep only its input for the backward pass.

    Results do not change, since the same operations run again. The modules' `forward` is replaced and no module is
    wrapped, so every parameter keeps its name.
    """
    if what == "none":
        return
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        module = block if what == "block" else block.mlp
        assert isinstance(module, nn.Module)
        module.forward = _checkpointed(module.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_with_checkpoint(*args: Any) -> Any:
        # Nothing is drawn at random in a forward pass, so there is no random state to keep.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)

    return forward_with_checkpoint
