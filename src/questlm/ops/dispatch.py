"""Which implementation runs an operation: the one place that decides.

`auto` takes the fastest backend that exists for the tensor's device and dtype and falls back to the reference, which
runs everywhere. A backend named with `using_backend` is a request: where it cannot run, a BackendError says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from questlm.errors import BackendError, nearest_name

__all__ = ["BACKENDS", "OPERATIONS", "backend_for", "unavailable", "using_backend"]

BACKENDS = ("auto", "reference", "cpu", "triton")

OPERATIONS: dict[str, tuple[str, ...]] = {
    "quantize": ("cpu", "reference"),
    "masked_hadamard": ("cpu", "reference"),
    "scaled_matmul": ("reference",),
    "pack": ("reference",),
    "unpack": ("reference",),
}
"""Backends that implement each operation, fastest first."""

_CPU_DTYPES = (torch.float32,)
_requested = "auto"
_reasons: dict[str, str | None] = {}


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """Run every operation inside the block on backend `name`.

    Raises:
        BackendError: no such backend, or it cannot run on this machine.
    """
    global _requested
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}.{nearest_name(name, BACKENDS)} There are: {', '.join(BACKENDS)}.")
    reason = None if name == "auto" else unavailable(name)
    if reason:
        raise BackendError(f"the {name} backend cannot run here: {reason}")
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def backend_for(operation: str, x: Tensor) -> str:
    """Name of the backend that will run `operation` on a tensor like `x`.

    Raises:
        BackendError: the requested backend does not implement the operation for such a tensor.
    """
    if _requested == "auto":
        return next(name for name in OPERATIONS[operation] if _fits(name, x) and unavailable(name) is None)
    # A backend implements the operations worth a kernel; the rest always runs on the reference.
    if _requested not in OPERATIONS[operation]:
        return "reference"
    if not _fits(_requested, x):
        raise BackendError(
            f"the {_requested} backend does not implement {operation} for {x.dtype} on {x.device.type}; "
            f"use the backend 'auto' or 'reference'"
        )
    return _requested


@torch.compiler.assume_constant_result  # imports a module and loads a library, which torch.compile cannot trace
def unavailable(backend: str) -> str | None:
    """Why `backend` cannot run on this machine, or None if it can."""
    if backend not in _reasons:
        _reasons[backend] = _find_reason(backend)
    return _reasons[backend]


def _fits(backend: str, x: Tensor) -> bool:
    return backend == "reference" or (backend == "cpu" and x.device.type == "cpu" and x.dtype in _CPU_DTYPES)


def _find_reason(backend: str) -> str | None:
    if backend == "cpu":
        reason: str | None = importlib.import_module("questlm.ops.cpu").unavailable()
        return reason
    if backend == "triton":
        return "this version of questlm has no Triton kernels yet"
    return None
