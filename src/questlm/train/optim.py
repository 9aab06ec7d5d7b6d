"""AdamW as in the published runs: weight decay on the blocks' matrices only; what quantisers learn is a group apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from questlm.config import TrainConfig
from questlm.quant import learned_parameters

__all__ = ["empty_state", "make_optimizer", "optimizer_tensors", "set_learning_rate"]


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `model`'s parameters; embedding, head, norms and biases do not decay.

    Each group has `lr_ratio`, its learning rate in units of the schedule's.
    """
    learned = learned_parameters(model)
    decaying = [p for name, p in model.named_parameters() if name not in learned and _decays(name, p)]
    others = [p for name, p in model.named_parameters() if name not in learned and not _decays(name, p)]
    ratio = 1.0 if train.quantizer_lr is None else train.quantizer_lr / train.lr
    groups = [
        {"params": decaying, "weight_decay": train.weight_decay, "lr_ratio": 1.0},
        {"params": others, "weight_decay": 0.0, "lr_ratio": 1.0},
        {"params": list(learned.values()), "weight_decay": train.quantizer_weight_decay, "lr_ratio": ratio},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=train.lr, betas=(train.beta1, train.beta2), fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its part of the schedule's rate; in place where a recorded step reads it from the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["lr_ratio"])
        else:
            group["lr"] = lr * group["lr_ratio"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state under `parameter.name/state_name`, ready for safetensors."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def empty_state(optimizer: torch.optim.Optimizer) -> None:
    """Give an AdamW that has made no step the state it would have, all zeros, to be filled from a checkpoint."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _decays(name: str, parameter: Tensor) -> bool:
    return name.startswith("layers.") and parameter.ndim == 2
