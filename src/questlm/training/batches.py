"""Choosing the batch sizes that the settings leave open, when a run begins.

The run's settings record them, so that a resumed run keeps them, also on another machine.
"""

from __future__ import annotations

import os

import torch

from questlm.config import RunConfig
from questlm.humanize import bytes_text
from questlm.memory import Memory, host_memory, require_memory
from questlm.parallel import Processes
from questlm.scaling.memory import TrainingMemory, training_memory
from questlm.scaling.shapes import training_settings
from questlm.training.device import free_memory, should_compile

__all__ = ["choose_batch", "choose_batches", "choose_micro_batch", "keep_batches", "require_training_memory"]

_STEPS = 100
"""Steps that a budget should pay for at least; the batch is made smaller for that."""

_ESTIMATE_ERROR = 1.25
"""Factor by which the estimate of memory may be too high or too low. Chosen sizes fit even if it is too low by this
factor, and given sizes are refused only if they do not fit even if it is too high by it."""

_CPU_TOKENS = 8192
"""Largest number of tokens of a pass on a CPU; longer passes are no faster."""


def choose_batches(
    config: RunConfig, processes: Processes, device: torch.device, tokens: float | None = None
) -> RunConfig:
    """`config` with the batch sizes of `choose_batch` and `choose_micro_batch`, where it has none.

    Raises:
        ConfigError: the model does not fit the memory.
    """
    return choose_micro_batch(choose_batch(config, processes.world_size, tokens), processes, device)


def choose_batch(config: RunConfig, world_size: int, tokens: float | None = None) -> RunConfig:
    """`config` with a batch size, where it has none.

    It is that of the preset nearest in size, but at most a hundredth of the tokens that the budget pays for.

    Args:
        world_size: number of processes, which share each batch.
        tokens: how many a budget in seconds pays for; None: not known yet.
    """
    train = config.train
    if train.batch_size is not None:
        return config
    usual = training_settings(config.model.block_parameters)
    most = usual["batch_size"] * usual["seq_len"]
    budget = config.token_budget() if tokens is None else tokens
    wanted = most if budget is None else min(most, budget / _STEPS)
    unit = world_size * (train.micro_batch_size or 1)
    units = max(1, int(wanted / (train.seq_len * unit)))
    return _changed(config, batch_size=unit * 2 ** (units.bit_length() - 1))


def choose_micro_batch(config: RunConfig, processes: Processes, device: torch.device) -> RunConfig:
    """`config` with a micro-batch size that fits the device, where it has none and the full batch does not fit.

    Raises:
        ConfigError: the model does not fit with one sequence, or not with the micro-batch size that was given.
    """
    train = config.train
    assert train.batch_size is not None
    share = train.batch_size // processes.world_size
    if train.micro_batch_size is None and share > 0:
        memory, needed = _free_for_each(device, processes), _needed(config, device, processes.world_size)
        fitting = share if memory is None else needed.most_sequences(memory.free / _ESTIMATE_ERROR)
        if device.type == "cpu":
            fitting = min(fitting, _CPU_TOKENS // train.seq_len)
        size = max(size for size in range(1, max(1, min(share, fitting)) + 1) if share % size == 0)
        if size < share:
            config = _changed(config, micro_batch_size=size)
    require_training_memory(config, processes, device)
    return config


def require_training_memory(config: RunConfig, processes: Processes, device: torch.device) -> None:
    """Refuse a model that does not fit the memory, by an estimate, before it is built.

    Raises:
        ConfigError: it does not fit; says how much it needs and how much there is.
    """
    train, needed = config.train, _needed(config, device, processes.world_size)
    sequences = train.micro_batch_size or (train.batch_size or 1) // processes.world_size or 1
    what = (
        f"training this model of {config.model.parameters:,} parameters (weights, gradients, optimizer: "
        f"{bytes_text(needed.model)}; a pass of {sequences} x {train.seq_len} tokens: "
        f"{bytes_text(sequences * needed.sequence)})"
    )
    hint = "take a smaller model, or other memory"
    if needed.total(1) < needed.total(sequences) and sequences > 1:
        hint = "take fewer sequences with --set train.micro_batch_size=N, or a smaller model"
    memory = _free_for_each(device, processes)
    if memory is not None and needed.total(sequences) > _ESTIMATE_ERROR * memory.free:
        require_memory(needed.total(sequences), memory, what, hint)
    if device.type == "cuda":  # on the CPU each weight is drawn or read alone
        model = config.model
        largest = 4.0 * model.hidden * max(model.vocab_size or 0, model.mlp_width)
        require_memory(largest, _host_memory_for_each(processes), "drawing this model's largest weight", hint)


def keep_batches(config: RunConfig, saved: RunConfig) -> RunConfig:
    """`config` with the batch sizes of the run `saved`, where it has none of its own."""
    sizes = {name: getattr(saved.train, name) for name in ("batch_size", "micro_batch_size")}
    unset = {name: size for name, size in sizes.items() if getattr(config.train, name) is None}
    return _changed(config, **unset) if any(size is not None for size in unset.values()) else config


def _changed(config: RunConfig, **sizes: int | None) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=sizes)})


def _needed(config: RunConfig, device: torch.device, world_size: int) -> TrainingMemory:
    gpu, compiled = device.type == "cuda", should_compile(config.train, device)
    return training_memory(config.model, config.quant, config.train, gpu, compiled, world_size)


def _free_for_each(device: torch.device, processes: Processes) -> Memory | None:
    """The least memory that any of the processes has for itself."""
    memory = free_memory(device) if device.type == "cuda" else _host_memory_for_each(processes)
    free = -processes.largest(-float(memory.free) if memory else -float("inf"))[0]
    return None if memory is None else Memory(int(min(free, memory.free)), memory.total, memory.kind)


def _host_memory_for_each(processes: Processes) -> Memory | None:
    memory = host_memory()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes.world_size)) if processes.world_size > 1 else 1
    return None if memory is None else Memory(memory.free // here, memory.total // here)
