"""The device that a run trains on: choosing it, its name, memory and autocast."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from questlm.config import TrainConfig
from questlm.errors import ConfigError, TrainingError, quoted
from questlm.memory import Memory, peak_resident_memory
from questlm.parallel import Processes

__all__ = [
    "autocast",
    "device_name",
    "free_memory",
    "peak_memory",
    "pick_device",
    "reporting_failed_gpu",
    "should_compile",
]

_ALONE = Processes()


def pick_device(name: str, processes: Processes = _ALONE) -> torch.device:
    """The device of the setting `train.device`; 'auto' is CUDA where there is a GPU, else the CPU.

    Of several processes on a machine each takes the GPU of its local rank.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"train.device = {quoted(name)} is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"train.device = {quoted(name)} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and processes.world_size > 1:
        return _own_gpu(device, processes)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device = {quoted(name)}, but this machine has {torch.cuda.device_count()} CUDA devices; "
            f"use cpu or auto"
        )
    return device


def _own_gpu(device: torch.device, processes: Processes) -> torch.device:
    if str(device) != "cuda":
        raise ConfigError(
            f"train.device = {quoted(str(device))} is one GPU for {processes.world_size} processes; use cuda or auto"
        )
    if processes.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {processes.local_rank + 1} of this machine has no GPU of its own, as there are "
            f"{torch.cuda.device_count()}; start no more processes than that (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", processes.local_rank)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast on CUDA, float32 on the CPU."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def should_compile(train: TrainConfig, device: torch.device) -> bool:
    """Whether to use torch.compile. By default on CUDA only: on a CPU it costs a minute and the native kernels win."""
    return train.compile == "on" or (train.compile == "auto" and device.type == "cuda")


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were ever allocated on the GPU; on a CPU, the peak resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_memory()


def free_memory(device: torch.device) -> Memory:
    """Memory of a GPU; what this process has reserved and does not use counts as free."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(free + unused, total, "GPU memory")


@contextmanager
def reporting_failed_gpu(device: torch.device, hint: str) -> Iterator[None]:
    """Raise a TrainingError that ends in `hint` where a kernel fails: this process cannot use the GPU any more.

    Raises:
        TrainingError: the GPU reported an error.
    """
    try:
        yield
    except torch.AcceleratorError as problem:
        reason = str(problem).splitlines()[0]
        raise TrainingError(
            f"the GPU ({device}) reported an error, after which this process cannot use it: {reason}; {hint}"
        ) from problem
