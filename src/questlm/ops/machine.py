"""What this machine can run: each answer is None, or the reason why not in words for a person."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

__all__ = ["constant_when_compiled", "no_nvidia", "unavailable"]

_Function = TypeVar("_Function", bound=Callable[..., object])

_GENERATIONS = {8: "Ampere", 9: "Hopper"}
_reasons: dict[str, str | None] = {}


def constant_when_compiled(function: _Function) -> _Function:
    """Mark a function whose result torch.compile computes once, when it traces a call.

    As `torch.compiler.assume_constant_result`, but that imports the compiler: more than a second of CPU time, in every
    command.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@constant_when_compiled  # imports a module and loads a library, which torch.compile cannot trace
def unavailable(backend: str) -> str | None:
    """Why `backend` cannot run on this machine, or None if it can."""
    if backend not in _reasons:
        _reasons[backend] = _find_reason(backend)
    return _reasons[backend]


@constant_when_compiled  # asks the driver, which torch.compile cannot trace
def no_nvidia(device: torch.device, major: int, what: str) -> str | None:
    """Why `what` cannot run on `device`, where it needs an NVIDIA GPU of compute capability `major` or higher."""
    return _no_nvidia(device, major, what)


@cache
def _no_nvidia(device: torch.device, major: int, what: str) -> str | None:
    if device.type != "cuda" or torch.version.cuda is None:
        found = "an AMD GPU" if device.type == "cuda" else f"a {device.type.upper()}"
    else:
        capability = torch.cuda.get_device_capability(device)
        if capability >= (major, 0):
            return None
        found = "sm_{}{}".format(*capability)
    return f"{what} need an NVIDIA GPU from {_GENERATIONS[major]} on; this is {found}"


def _find_reason(backend: str) -> str | None:
    if backend == "cpu":
        reason: str | None = importlib.import_module("questlm.ops.cpu").unavailable()
        return reason
    if backend == "triton":
        return _no_triton()
    return None


def _no_triton() -> str | None:
    try:
        interpreted: bool = importlib.import_module("questlm.ops.triton").interpreted()
    except ImportError as problem:
        return f"Triton cannot be imported ({problem}); pip install triton"
    if interpreted or torch.cuda.is_available():
        return None
    return "there is no GPU here; set TRITON_INTERPRET=1 to run its kernels slowly on the CPU"
