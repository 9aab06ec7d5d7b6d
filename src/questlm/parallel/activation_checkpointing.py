"""Activation checkpointing: compute parts of the forward pass again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Recompute", "checkpoint_activations"]

Recompute = Literal["none", "mlp", "block"]


def checkpoint_activations(model: nn.Module, what: Recompute) -> None:
    """Let each block of `model.layers`, or each block's `mlp`, keep its input alone for the backward pass.

    No number changes: the same operations run again. The modules' `forward` is replaced, and nothing is wrapped around
    them, so every parameter keeps its name.
    """
    if what == "none":
        return
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        module = block if what == "block" else block.mlp
        assert isinstance(module, nn.Module)
        module.forward = _again(module.forward)


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def remembering_only_its_inputs(*args: Any) -> Any:
        # Nothing is drawn at random in a forward pass, so there is no random state to keep.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)

    return remembering_only_its_inputs
