"""AdamW as in the published runs: weight decay on the blocks' matrices only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from questlm.config import TrainConfig

__all__ = ["load_optimizer_tensors", "make_optimizer", "optimizer_tensors"]


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `model`'s parameters; embedding, head, norms and biases do not decay."""
    decaying = [p for name, p in model.named_parameters() if _decays(name, p)]
    others = [p for name, p in model.named_parameters() if not _decays(name, p)]
    groups = [
        {"params": decaying, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state under `parameter.name/state_name`, ready for safetensors."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, into the optimizer of a model with the same parameters."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        optimizer.state[parameter][key] = value.to(parameter.device)


def _decays(name: str, parameter: Tensor) -> bool:
    return name.startswith("layers.") and parameter.ndim == 2
