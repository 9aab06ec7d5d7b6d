"""Optional places to send metrics to during a run: TensorBoard, Weights & Biases. The run record needs neither."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from questlm.errors import MissingDependencyError

__all__ = ["Log", "open_loggers", "require_loggers"]

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}

Log = Callable[[int, Mapping[str, float]], None]
"""(step, {metric: value})."""


def open_loggers(names: tuple[str, ...], run: Path, config: Mapping[str, Any], stack: ExitStack) -> Log:
    """Open the loggers `names`, to be closed with `stack`; returns a function that feeds them all."""
    require_loggers(names)
    logs = [_OPENERS[name](run, config, stack) for name in names]

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for each in logs:
            each(step, metrics)

    return log


def require_loggers(names: tuple[str, ...]) -> None:
    """Fail now, before a run folder is made, if a logger's package is missing.

    Raises:
        MissingDependencyError: naming the pip command.
    """
    for name in names:
        try:
            importlib.import_module(_MODULES[name])
        except ImportError:
            raise MissingDependencyError(name, name, f"train.loggers = [{name}]") from None


def _tensorboard(run: Path, config: Mapping[str, Any], stack: ExitStack) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))
    stack.callback(writer.close)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


def _wandb(run: Path, config: Mapping[str, Any], stack: ExitStack) -> Log:
    import wandb

    session = wandb.init(
        project="questlm", name=run.name, id=run.name, resume="allow", dir=str(run), config=dict(config)
    )
    stack.callback(session.finish)
    return lambda step, metrics: session.log(dict(metrics), step=step)


_OPENERS: dict[str, Callable[[Path, Mapping[str, Any], ExitStack], Log]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
