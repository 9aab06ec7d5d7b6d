"""The state of a run: model, optimizer, position in the data, counters.

All of it is in every checkpoint, and nothing else decides what comes next. So a run that is killed at any moment and
resumed ends where the uninterrupted one ends (bit for bit on a CPU, for budgets in tokens; a budget in seconds depends
on the clock).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from questlm.config import DATA_PATHS
from questlm.data import WindowLoader
from questlm.errors import CheckpointError, DataError
from questlm.models import Llama
from questlm.parallel import full_tensor
from questlm.training.build import build_model, other_data
from questlm.training.checkpoint import (
    fill_tensors,
    latest_checkpoint,
    model_tensors,
    prune,
    verify_checkpoint,
    write_checkpoint,
)
from questlm.training.context import RunContext
from questlm.training.counters import CheckpointState, Counters, read_state
from questlm.training.optim import Optimizers
from questlm.training.same_settings import require_same_config

__all__ = ["TrainingState"]


class TrainingState:
    """What a checkpoint holds.

    Attributes:
        restored_from: the checkpoint that it was read from, or None.

    Args:
        model: unsharded; it is moved to the run's device. `attach_optimizer` is to be called once it is shared between
            the processes.
    """

    def __init__(self, run: RunContext, model: Llama, counters: Counters | None = None) -> None:
        self.run, self.model, self.counters = run, model.to(run.device), counters or Counters()
        self.loader = _loader(run)
        self.optimizer: Optimizers
        self.restored_from: Path | None = None

    def restore(self) -> None:
        """Read everything but the optimizer from the newest checkpoint. Without a checkpoint, change nothing.

        Raises:
            CheckpointError: damaged, or made with other settings or data.
        """
        path = latest_checkpoint(self.run.folder.checkpoints)
        if path is None:
            return
        self.run.processes.on_main(lambda: _verify(path))
        self.run.processes.together(lambda: self._restore(path))

    def _restore(self, path: Path) -> None:
        state = read_state(path)
        _require_fitting(state, self.run, path)
        fill_tensors(path, "model", model_tensors(self.model))
        self.model.load_state_dict(self.model.state_dict())  # by which quantisers notice what they now hold
        try:
            self.loader.load_state_dict(state.loader)
        except DataError as problem:
            raise CheckpointError(f"{path} does not fit this run: {problem}") from None
        self.counters = state.progress
        self.restored_from = path

    def attach_optimizer(self, optimizer: Optimizers) -> None:
        """Take the optimizer, and fill it from the checkpoint that the rest was restored from.

        Raises:
            CheckpointError: the checkpoint holds no optimizer state of this model.
        """
        self.optimizer, path = optimizer, self.restored_from
        if path is not None and self.counters.step:
            optimizer.make_state()
            self.run.processes.together(lambda: fill_tensors(path, "optimizer", optimizer.tensors(self.model)))

    def set_recipe_inputs(self, inputs: dict[str, str]) -> None:
        """Take the hashes of what recipes read from outside the run.

        Raises:
            CheckpointError: the run was restored, and read something else before.
        """
        before = self.counters.recipe_inputs
        if self.restored_from is not None and inputs != before:
            name = min(name for name in inputs | before if inputs.get(name) != before.get(name))
            then, now = (_short(hashes.get(name)) for hashes in (before, inputs))
            raise CheckpointError(
                f"{self.restored_from} was trained with other content of {name} (SHA-256 {then}) than there is now "
                f"({now}); put it back as it was, or begin a new run with --init-from"
            )
        self.counters.recipe_inputs = inputs

    def save(self) -> None:
        """Write a checkpoint, and delete the oldest of more than `train.keep_checkpoints`.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before it are untouched.
        """
        run = self.run
        content = CheckpointState(
            run.config.model_dump(mode="json"), run.data.data_hash, self.loader.state_dict(), self.counters
        )
        tensors = {"model": model_tensors(self.model), "optimizer": self.optimizer.tensors(self.model)}
        write_checkpoint(run.folder.checkpoints, tensors, content, run.processes, sharded=run.engine == "fsdp")
        run.processes.on_main(lambda: prune(run.folder.checkpoints, run.config.train.keep_checkpoints))

    def next_micro_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the first micro-batch of the next step, (sequences, tokens) int64, on the device.

        The loader stays where it is.
        """
        position = self.loader.state_dict()
        batch = self.loader.next_batch()
        self.loader.load_state_dict(position)
        size = self.run.config.train.micro_batch_size or len(batch[0])
        inputs, targets = (torch.from_numpy(part)[:size].to(self.run.device) for part in batch)
        return inputs, targets

    @torch.no_grad()
    def full_model(self) -> Llama:
        """The model with all its weights on this process; all processes call it."""
        if self.run.engine != "fsdp":
            return self.model
        model = build_model(self.run.config, device=self.run.device)
        own = model_tensors(model)
        for name, tensor in model_tensors(self.model).items():
            own[name].copy_(full_tensor(tensor))
        model.load_state_dict(model.state_dict())  # by which quantisers notice what they now hold
        return model


def _loader(run: RunContext) -> WindowLoader:
    train, processes = run.config.train, run.processes
    return WindowLoader(
        run.data.train,
        train.seq_len,
        train.tokens_per_step // train.seq_len,
        run.config.seed,
        processes.rank,
        processes.world_size,
    )


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}..."


def _verify(checkpoint: Path) -> None:
    verify_checkpoint(checkpoint)  # its result is no JSON, which the first process could tell the others


def _require_fitting(state: CheckpointState, run: RunContext, path: Path) -> None:
    """Refuse a checkpoint of other settings or data, or one whose counters contradict each other."""
    require_same_config(state.config, run.config, path, DATA_PATHS)
    if state.data_hash != run.data.data_hash:
        raise other_data(path, run.config)
    counters = state.progress
    if counters.tokens != counters.step * run.config.train.tokens_per_step:
        raise CheckpointError(
            f"{path} counts {counters.tokens} tokens in {counters.step} steps of "
            f"{run.config.train.tokens_per_step}; it is damaged"
        )
