"""Which implementation runs an operation: the one place that decides.

`auto` takes the fastest backend that exists for the tensor's device and dtype and falls back to the reference, which
runs everywhere. A backend named with `using_backend` is a request: where it cannot run, a BackendError says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from questlm.errors import BackendError, nearest_name, quoted

__all__ = [
    "BACKENDS",
    "OPERATIONS",
    "backend_for",
    "compile_ahead",
    "float8_products",
    "int8_products",
    "unavailable",
    "using_backend",
]

BACKENDS = ("auto", "reference", "cpu", "triton")

OPERATIONS: dict[str, tuple[str, ...]] = {
    "quantize": ("triton", "cpu", "reference"),
    "masked_hadamard": ("triton", "cpu", "reference"),
    "norm_quantize": ("triton", "reference"),
    "swiglu_quantize": ("triton", "reference"),
    "scaled_matmul": ("reference",),
    "pack": ("reference",),
    "unpack": ("reference",),
}
"""Backends that implement each operation, fastest first."""

_DTYPES = {"cpu": (torch.float32,), "triton": (torch.float32, torch.bfloat16, torch.float16)}
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
        raise BackendError(
            f"no backend {quoted(name)}.{nearest_name(name, BACKENDS)} There are: {', '.join(BACKENDS)}."
        )
    reason = None if name == "auto" else unavailable(name)
    if reason:
        raise BackendError(f"the {name} backend cannot run here: {reason}")
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def backend_for(operation: str, x: Tensor, block_size: int = 1) -> str:
    """Name of the backend that will run `operation` on rows like `x`, rotated by blocks of `block_size`.

    Raises:
        BackendError: the requested backend does not implement the operation for such a tensor.
    """
    if _requested == "auto":
        candidates = (name for name in OPERATIONS[operation] if unavailable(name) is None)
        return next(name for name in candidates if _fits(name, x, block_size))
    # A backend implements the operations worth a kernel; the rest always runs on the reference.
    if _requested not in OPERATIONS[operation]:
        return "reference"
    if not _fits(_requested, x, block_size, on_request=True):
        raise BackendError(
            f"the {_requested} backend does not implement {operation} for {x.dtype} rows of {x.shape[-1]} in blocks of "
            f"{block_size} on {x.device.type}; use the backend 'auto' or 'reference'"
        )
    return _requested


def compile_ahead(warm_up: Callable[[], object], device: torch.device) -> None:
    """Compile at once, on all cores, the kernels that `warm_up` needs on `device`, where they are compiled on use.

    What it computes is undefined, as kernels do not run in it; gradients and the like are its caller's to clear.
    """
    if device.type == "cuda" and _requested != "reference" and unavailable("triton") is None:
        importlib.import_module("questlm.ops.triton.launch").compile_ahead(warm_up)


def float8_products(device: torch.device) -> bool:
    """Whether `device` multiplies float8 matrices with a scale for each row: NVIDIA GPUs from Hopper on."""
    return _is_nvidia(device, 9)


def int8_products(device: torch.device) -> bool:
    """Whether `device` has tensor cores for int8 that Triton uses: NVIDIA GPUs from Ampere on."""
    return _is_nvidia(device, 8)


@torch.compiler.assume_constant_result  # which torch.compile cannot find out by tracing
def _is_nvidia(device: torch.device, generation: int) -> bool:
    known = device.type == "cuda" and torch.version.cuda is not None
    return known and torch.cuda.get_device_capability(device) >= (generation, 0)


@torch.compiler.assume_constant_result  # imports a module and loads a library, which torch.compile cannot trace
def unavailable(backend: str) -> str | None:
    """Why `backend` cannot run on this machine, or None if it can."""
    if backend not in _reasons:
        _reasons[backend] = _find_reason(backend)
    return _reasons[backend]


def _fits(backend: str, x: Tensor, block_size: int, on_request: bool = False) -> bool:
    if backend == "reference":
        return True
    if x.dtype not in _DTYPES[backend]:
        return False
    if backend == "cpu":
        return x.device.type == "cpu"
    # Under Triton's interpreter a CPU's tensors fit, but who did not ask for that does not want to wait for it.
    return (x.is_cuda or (on_request and x.device.type == "cpu")) and _triton_fits(x.shape[-1], block_size)


@torch.compiler.assume_constant_result
def _triton_fits(k: int, block_size: int) -> bool:
    fits: bool = importlib.import_module("questlm.ops.triton").fits(k, block_size)
    return fits


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
