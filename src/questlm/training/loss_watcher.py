"""Stop a run whose loss or gradient is no longer finite, before it is saved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from questlm.errors import TrainingError
from questlm.parallel import local_shard
from questlm.training.checkpoint import latest_checkpoint
from questlm.training.state import TrainingState

__all__ = ["LossWatcher"]


class LossWatcher:
    """Collects the losses of steps on the device and fetches several at once, because fetching waits for the device."""

    def __init__(self, state: TrainingState) -> None:
        self.run, self.state = state.run, state
        self.gradient_norm = torch.zeros((), device=state.run.device)
        self._pending: list[Tensor] = []

    def add(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Keep the loss and the gradient norm of a step, both still on the device."""
        self._pending.append(loss)
        self.gradient_norm = gradient_norm

    def fetch(self) -> None:
        """Move the losses kept since the last call, averaged over all processes, into the counters.

        Raises:
            TrainingError: one of them, or the newest gradient norm, is not finite.
        """
        if not self._pending:
            return
        losses = self.run.processes.mean(torch.stack(self._pending)).tolist()
        self._pending.clear()
        last = self.state.counters.step
        for step, loss in enumerate(losses, last - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._error(f"the loss became {loss}", step)
        if not bool(torch.isfinite(self.gradient_norm)):
            raise self._error("the gradient became non-finite", last)
        self.state.counters.recent_losses.extend(losses)

    def _error(self, what: str, step: int) -> TrainingError:
        broken = next((name for name, p in self.state.model.named_parameters() if not self._is_finite(p)), None)
        where = f" (first non-finite parameter: {broken})" if broken else ""
        good = latest_checkpoint(self.run.folder.checkpoints)
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        return TrainingError(
            f"{what} at step {step}{where}; {kept}; start a run with a lower train.lr, or look at the data there"
        )

    def _is_finite(self, parameter: Tensor) -> bool:
        return not self.run.processes.largest(not bool(torch.isfinite(local_shard(parameter)).all()))[0]
