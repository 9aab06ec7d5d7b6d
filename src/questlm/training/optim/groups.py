"""Groups of parameters that an optimizer treats alike."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from questlm.config import TrainConfig
from questlm.quant import learned_parameters

__all__ = ["Group", "parameter_groups"]

Group = Literal["matrices", "others", "quantizers"]
"""The blocks' matrices; embedding, head, norms and biases; what quantisers learn."""


def parameter_groups(model: nn.Module, train: TrainConfig) -> dict[Group, dict[str, object]]:
    """Parameter groups for a `torch.optim.Optimizer`, without the empty ones.

    Each has its `name`, `params`, `weight_decay`, and `lr_ratio`, its learning rate in units of the schedule's.
    """
    learned = learned_parameters(model)
    rest = {name: parameter for name, parameter in model.named_parameters() if name not in learned}
    matrices = [parameter for name, parameter in rest.items() if _is_block_matrix(name, parameter)]
    others = [parameter for name, parameter in rest.items() if not _is_block_matrix(name, parameter)]
    ratio = 1.0 if train.quantizer_lr is None else train.quantizer_lr / train.lr
    groups: dict[Group, dict[str, object]] = {
        "matrices": {"name": "matrices", "params": matrices, "weight_decay": train.weight_decay, "lr_ratio": 1.0},
        "others": {"name": "others", "params": others, "weight_decay": 0.0, "lr_ratio": 1.0},
        "quantizers": {
            "name": "quantizers",
            "params": list(learned.values()),
            "weight_decay": train.quantizer_weight_decay,
            "lr_ratio": ratio,
        },
    }
    return {name: group for name, group in groups.items() if group["params"]}


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return name.startswith("layers.") and parameter.ndim == 2
