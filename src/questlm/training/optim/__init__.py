"""Optimizers by name, over groups of a model's parameters.

To add one, write a `torch.optim.Optimizer` with the methods of `Part` (`base.py`) in a file of its own, put a function
that makes its parts into OPTIMIZERS, and add its name to `TrainConfig.optimizer` in `questlm/config/schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from questlm.config import TrainConfig
from questlm.parallel import Processes
from questlm.training.optim.adamw import AdamW
from questlm.training.optim.base import Optimizers, Part
from questlm.training.optim.groups import Group, parameter_groups
from questlm.training.optim.muon import Muon

__all__ = ["OPTIMIZERS", "AdamW", "Muon", "Optimizers", "Part", "make_optimizer"]

_ALONE = Processes()


def _adamw(groups: dict[Group, dict[str, object]], train: TrainConfig, processes: Processes) -> list[Part]:
    return [AdamW(list(groups.values()), train.lr, (train.beta1, train.beta2))]


def _muon(groups: dict[Group, dict[str, object]], train: TrainConfig, processes: Processes) -> list[Part]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = groups.pop("matrices", None)
    parts: list[Part] = _adamw(groups, train, processes) if groups else []
    if matrices is not None:
        matrices["lr_ratio"] = 1.0 if train.muon_lr is None else train.muon_lr / train.lr
        muon = Muon([matrices], train.lr, train.muon_momentum, None, processes, train.muon_equal_rows)
        parts.append(muon)
    return parts


OPTIMIZERS: dict[str, Callable[[dict[Group, dict[str, object]], TrainConfig, Processes], list[Part]]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def make_optimizer(model: nn.Module, train: TrainConfig, processes: Processes = _ALONE) -> Optimizers:
    """The optimizer `train.optimizer` over the parameters of `model`.

    Args:
        processes: the processes that train the model; every one makes the optimizer.
    """
    return Optimizers(OPTIMIZERS[train.optimizer](parameter_groups(model, train), train, processes))
