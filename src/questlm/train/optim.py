"""AdamW as in the published runs: weight decay on the blocks' matrices only; what quantisers learn is a group apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from questlm.config import TrainConfig
from questlm.quant import learned_parameters

__all__ = ["load_optimizer_tensors", "make_optimizer", "optimizer_tensors", "set_learning_rate"]


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
    """Give each group its part of the schedule's rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state under `parameter.name/state_name`, ready for safetensors."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, into the optimizer of a model with the same parameters.

    Raises:
        ValueError: a state is missing, or has another shape or dtype than its parameter (AdamW reads memory unchecked).
    """
    for name, parameter in model.named_parameters():
        state = {key: tensors.get(f"{name}/{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        for key, value in state.items():
            like = torch.zeros(()) if key == "step" else parameter
            if value is None or value.shape != like.shape or value.dtype is not like.dtype:
                raise ValueError(f"the optimizer's {key} of {name} is missing or of another shape")
            optimizer.state[parameter][key] = value.to(parameter.device)


def _decays(name: str, parameter: Tensor) -> bool:
    return name.startswith("layers.") and parameter.ndim == 2
