"""Optional places to send metrics to during a run: TensorBoard, Weights & Biases. The run record needs neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from questlm.errors import MissingDependencyError

__all__ = ["Log", "open_loggers"]

Log = Callable[[int, Mapping[str, float]], None]
"""(step, {metric: value})."""


def open_loggers(names: tuple[str, ...], run: Path, config: Mapping[str, Any], stack: ExitStack) -> Log:
    """Open the loggers `names`, to be closed with `stack`; returns a function that feeds them all.

    Raises:
        MissingDependencyError: a logger's package is not installed.
    """
    logs = [_OPENERS[name](run, config, stack) for name in names]

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for each in logs:
            each(step, metrics)

    return log


def _tensorboard(run: Path, config: Mapping[str, Any], stack: ExitStack) -> Log:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDependencyError("tensorboard", "tensorboard", "train.loggers = [tensorboard]") from None
    writer = SummaryWriter(str(run / "tensorboard"))
    stack.callback(writer.close)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


def _wandb(run: Path, config: Mapping[str, Any], stack: ExitStack) -> Log:
    try:
        import wandb
    except ImportError:
        raise MissingDependencyError("wandb", "wandb", "train.loggers = [wandb]") from None
    session = wandb.init(
        project="questlm", name=run.name, id=run.name, resume="allow", dir=str(run), config=dict(config)
    )
    stack.callback(session.finish)
    return lambda step, metrics: session.log(dict(metrics), step=step)


_OPENERS: dict[str, Callable[[Path, Mapping[str, Any], ExitStack], Log]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
