"""Several optimizers that each move a part of a model, used as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Optimizers", "Part"]


class Part(Protocol):
    """What the training loop asks of a `torch.optim.Optimizer` beside `step` and `zero_grad`.

    Attributes:
        recordable: whether `step` can be recorded in a CUDA graph. The learning rates are then tensors on the device.
    """

    recordable: bool
    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]

    def step(self) -> object:
        """Move the parameters by their gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""

    def make_state(self) -> None:
        """Give every parameter the state it has before the first step, to be filled from a checkpoint."""


class Optimizers:
    """The optimizer of a run: parts that share one schedule of the learning rate."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    @property
    def recordable(self) -> bool:
        """Whether a step can be recorded in a CUDA graph."""
        return all(part.recordable for part in self.parts)

    @property
    def groups(self) -> Iterator[dict[str, Any]]:
        """The parameter groups of all parts."""
        return (group for part in self.parts for group in part.param_groups)

    def step(self) -> None:
        """Move all parameters by their gradients."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def set_learning_rate(self, lr: float) -> None:
        """Give each group its part of the schedule's rate; in place where a recorded step reads it from the device."""
        for group in self.groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group["lr_ratio"])
            else:
                group["lr"] = lr * group["lr_ratio"]

    def prepare_recording(self, device: torch.device) -> None:
        """Move the learning rates to `device`, where a recorded step reads them."""
        for group in self.groups:
            group["capturable"], group["lr"] = True, torch.tensor(float(group["lr"]), device=device)

    def make_state(self) -> None:
        """Give every parameter the state it has before the first step, to be filled from a checkpoint."""
        for part in self.parts:
            part.make_state()

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """All state under `parameter.name/state_name`, for a checkpoint."""
        states: dict[Tensor, dict[str, Tensor]] = {}
        for part in self.parts:
            states |= part.state
        return {
            f"{name}/{key}": value
            for name, parameter in model.named_parameters()
            for key, value in states.get(parameter, {}).items()
        }
