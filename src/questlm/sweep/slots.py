"""Places where runs of a sweep go on side by side: one GPU each, or an equal share of the processor's cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from questlm.errors import ConfigError, quoted

__all__ = ["Slot", "make_slots", "visible_gpus"]


@dataclass(frozen=True)
class Slot:
    """A place for one run: its name for people, and the environment variables of a process there."""

    name: str
    environment: Mapping[str, str]


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """Names of the `count` GPUs that PyTorch sees, as CUDA_VISIBLE_DEVICES takes them (numbers or UUIDs)."""
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def make_slots(device: str, jobs: int | None, gpus: Sequence[str], cores: int) -> list[Slot]:
    """`jobs` slots for runs on `device` ('auto', 'cpu' or 'cuda'); None: one for each GPU, or one of all cores.

    Raises:
        ConfigError: more jobs than there are GPUs or cores, or a device of a number (a sweep hands those out itself).
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"train.device = {quoted(device)}, but a sweep places its runs itself; use auto, cpu or cuda")
    if device == "cuda" and not gpus:
        raise ConfigError("train.device = 'cuda', but this machine has no CUDA device; use auto or cpu")
    on_gpus = bool(gpus) and device != "cpu"
    places = len(gpus) if on_gpus else cores
    count = jobs if jobs is not None else len(gpus) if on_gpus else 1
    if not 1 <= count <= places:
        raise ConfigError(
            f"--jobs {count} is not from 1 to {places}, the number of {'GPUs' if on_gpus else 'cores'} here"
        )
    threads = str(max(1, cores // count))
    if on_gpus:
        return [Slot(f"GPU {gpu}", _environment(gpu, threads)) for gpu in gpus[:count]]
    return [Slot(f"CPU {number}", _environment("", threads)) for number in range(1, count + 1)]


def _environment(gpu: str, threads: str) -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": threads}
