"""Groups of parameters that an optimizer treats alike."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from questlm.config import TrainConfig
from questlm.quant import learned_parameters

__all__ = ["Group", "parameter_groups"]

Group = Literal["matrices", "embedding", "head", "others", "quantizers"]
"""The blocks' matrices; embedding and head, where they have rates of their own; everything else outside of quantisers,
such as norms and biases; what quantisers learn."""


def parameter_groups(model: nn.Module, train: TrainConfig) -> dict[Group, dict[str, object]]:
    """Parameter groups for a `torch.optim.Optimizer`, without the empty ones.

    Each has its `name`, `params`, `weight_decay`, and `lr_ratio`, its learning rate in units of the schedule's.
    """
    learned = learned_parameters(model)
    rates: dict[Group, float | None] = {
        "embedding": train.embedding_lr,
        "head": train.head_lr,
        "quantizers": train.quantizer_lr,
    }
    decays: dict[Group, float] = {"matrices": train.weight_decay, "quantizers": train.quantizer_weight_decay}
    members: dict[Group, list[nn.Parameter]] = {name: [] for name in get_args(Group)}
    for name, parameter in model.named_parameters():
        group: Group = "quantizers" if name in learned else _group(name, parameter)
        alike = group in ("embedding", "head") and rates[group] is None  # fewer groups take fewer launches
        members["others" if alike else group].append(parameter)
    groups: dict[Group, dict[str, object]] = {
        name: {
            "name": name,
            "params": parameters,
            "weight_decay": decays.get(name, 0.0),
            "lr_ratio": (rates.get(name) or train.lr) / train.lr,
        }
        for name, parameters in members.items()
    }
    return {name: group for name, group in groups.items() if group["params"]}


def _group(name: str, parameter: Tensor) -> Group:
    if name.startswith("layers.") and parameter.ndim == 2:
        return "matrices"
    return "embedding" if name == "embed.weight" else "head" if name == "lm_head.weight" else "others"
