"""The compiled kernels: finding the library, and calling it with tensors' memory."""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["limit_vector_width", "masked_hadamard", "quantize", "unavailable"]

_ABI_VERSION = 1  # as in kernels.c: a library built from other sources must not be called
_REBUILD = "with a C compiler (gcc or clang) on the PATH, run: pip install --force-reinstall --no-deps questlm"

_POINTER, _SIZE, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
_ARGUMENTS = {
    "questlm_quantize": [
        _POINTER, _SIZE, _SIZE, _SIZE, _INT, _DOUBLE, _DOUBLE, _POINTER, _POINTER, _POINTER, _INT, _POINTER,
    ],
    "questlm_masked_hadamard": [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER, _INT, _POINTER],
}  # fmt: skip


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run here, or None if they can."""
    try:
        _library()
    except (OSError, AttributeError) as problem:
        return str(problem)
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent
    # An extension in name only: it has no Python in it, so that building it takes no Python headers.
    found = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_kernels{suffix}").is_file()]
    if not found:
        raise OSError(f"the native kernels were not built; {_REBUILD}")
    library = ctypes.CDLL(str(found[0]))
    if library.questlm_abi_version() != _ABI_VERSION:
        raise OSError(f"the native kernels were built from another version of questlm; {_REBUILD}")
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library


@functools.cache
def _parallel() -> int | None:
    """Address of the entry to the OpenMP thread pool that torch computes in, if it is one that kernels.c can use."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, TypeError, AttributeError):
        return None


def limit_vector_width(floats: int) -> None:
    """Use vectors of at most so many floats: 16 is AVX-512, 8 AVX2, 4 SSE2 or NEON. For tests and measurements."""
    _library().questlm_limit_vector_width(floats)


def quantize(
    x: Tensor, block_size: int, levels: int, step_per_rms: float, mask_bound: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `questlm.ops.reference.quantize.quantize`; with a mask of no entries where none was asked for."""
    x = x.contiguous()
    *rows, k = x.shape
    codes = torch.empty(x.shape, dtype=torch.uint8)
    step = torch.empty((*rows, 1), dtype=torch.float32)
    mask = torch.empty((*rows, -(-k // 8)) if mask_bound is not None else (0,), dtype=torch.uint8)
    failed = _library().questlm_quantize(
        x.data_ptr(), step.numel(), k, block_size, levels, step_per_rms, mask_bound or 0.0,
        codes.data_ptr(), step.data_ptr(), None if mask_bound is None else mask.data_ptr(),
        torch.get_num_threads(), _parallel(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for a buffer of one row of {k} entries")
    return codes, step, mask


def masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """As `questlm.ops.reference.hadamard.masked_hadamard`, always in new memory."""
    gradient = gradient.contiguous()
    mask = None if mask is None else mask.contiguous()
    k = gradient.shape[-1]
    result = torch.empty(gradient.shape, dtype=torch.float32)
    failed = _library().questlm_masked_hadamard(
        gradient.data_ptr(), gradient.numel() // max(k, 1), k, block_size,
        None if mask is None else mask.data_ptr(), result.data_ptr(), torch.get_num_threads(), _parallel(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for a buffer of one row of {k} entries")
    return result
