"""The compiled kernels: finding the library, choosing its instruction set, and calling it with tensors' memory.

The environment variable QUESTLM_CPU names an instruction set lower than the best that this processor has.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from questlm.errors import BackendError, nearest_name, quoted
from questlm.ops.cpu.memory import aligned_memory

__all__ = [
    "Packed",
    "all_finite",
    "argmax",
    "instruction_set",
    "instruction_sets",
    "limit_vector_width",
    "llama_step",
    "masked_hadamard",
    "packed_bytes",
    "packed_linear",
    "packed_product",
    "prepack",
    "quantize",
    "rans_decode",
    "rans_encode",
    "read",
    "unavailable",
    "use_instruction_set",
]

_ABI_VERSION = 8  # as in kernels.c: a library built from other sources must not be called
_REBUILD = "with a C compiler (gcc or clang) on the PATH, run: pip install --force-reinstall --no-deps questlm"

_POINTER, _SIZE, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
_ARGUMENTS = {
    "questlm_quantize": [
        _POINTER, _SIZE, _SIZE, _SIZE, _INT, _DOUBLE, _DOUBLE, _POINTER, _POINTER, _POINTER, _INT, _POINTER,
    ],
    "questlm_masked_hadamard": [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER, _INT, _POINTER],
    "questlm_packed_bytes": [_INT, _SIZE, _SIZE],
    "questlm_prepack": [
        _POINTER, _SIZE, _SIZE, _SIZE, _INT, _INT, ctypes.c_char_p, ctypes.c_char_p, _POINTER, _POINTER, _INT, _POINTER,
    ],
    "questlm_packed_product": [_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _POINTER, _INT, _POINTER],
    "questlm_packed_linear": [_POINTER, _POINTER, _SIZE, _POINTER, _INT, _POINTER],
    "questlm_argmax": [_POINTER, _SIZE, _SIZE, _POINTER],
    "questlm_all_finite": [_POINTER, _SIZE],
    "questlm_llama_step": [_POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _INT, _POINTER],
    "questlm_rans_decode": [
        ctypes.c_char_p, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE, _POINTER,
    ],
    "questlm_rans_encode": [_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE, _POINTER],
    "questlm_read": [_POINTER, _SIZE, _INT, _POINTER],
    "questlm_instruction_set": [_INT],
    "questlm_supports": [_INT],
    "questlm_use_instruction_set": [_INT],
}  # fmt: skip
_RESULTS = {
    "questlm_packed_bytes": _SIZE,
    "questlm_rans_encode": _SIZE,
    "questlm_read": ctypes.c_uint64,
    "questlm_instruction_set": ctypes.c_char_p,
    "questlm_instruction_set_in_use": ctypes.c_char_p,
}


class Packed(ctypes.Structure):
    """`packed_t` of packed/layout.h, which says what each field is. It keeps no memory alive."""

    _fields_ = (
        ("data", _POINTER),
        ("sums", _POINTER),
        ("step", _POINTER),
        ("offset", _POINTER),
        ("bias", _POINTER),
        ("totals", _POINTER),
        ("values", _POINTER),
        ("rows", _SIZE),
        ("k", _SIZE),
        ("kind", ctypes.c_int32),
        ("has_table", ctypes.c_int32),
        ("by_table", ctypes.c_int32),
        ("is_wide", ctypes.c_int32),
        ("in_integers", ctypes.c_int32),
        ("by_digits", ctypes.c_int32),
        ("scale", ctypes.c_int32),
        ("shift", ctypes.c_int32),
        ("input_scale", ctypes.c_int32),
        ("input_shift", ctypes.c_int32),
        ("rounds_sums", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("input_levels", ctypes.c_int32),
        ("step_per_rms", ctypes.c_float),
        ("table", ctypes.c_uint8 * 16),
        ("input_table", ctypes.c_int8 * 256),
    )


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
    for name, result in _RESULTS.items():
        getattr(library, name).restype = result
    if wanted := os.environ.get("QUESTLM_CPU"):
        _use(library, wanted, "QUESTLM_CPU = ")
    return library


def _sets(library: ctypes.CDLL) -> list[tuple[str, bool]]:
    """Name of each instruction set that the library knows, from the lowest, and whether this processor has it."""
    found: list[tuple[str, bool]] = []
    while name := library.questlm_instruction_set(len(found)):
        found.append((name.decode(), bool(library.questlm_supports(len(found)))))
    return found


def _use(library: ctypes.CDLL, wanted: str, what: str) -> None:
    sets = _sets(library)
    here = [name for name, supported in sets if supported]
    if wanted not in here:
        names = [name for name, _ in sets]
        why = "this processor does not have it" if wanted in names else "there is no such instruction set"
        hint = "" if wanted in names else nearest_name(wanted, here)
        raise BackendError(f"{what}{quoted(wanted)}: {why}.{hint} This processor can run: {', '.join(here)}.")
    library.questlm_use_instruction_set([name for name, _ in sets].index(wanted))


def instruction_sets() -> list[str]:
    """The instruction sets that this processor has and the products of packed weights know, from the lowest."""
    return [name for name, supported in _sets(_library()) if supported]


def instruction_set() -> str:
    """The instruction set in use."""
    name: bytes = _library().questlm_instruction_set_in_use()
    return name.decode()


def use_instruction_set(name: str) -> None:
    """Use one of `instruction_sets()` from now on.

    Raises:
        BackendError: there is none of this name, or this processor lacks it.
    """
    _use(_library(), name, "")


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
    """Return codes, steps and mask as the reference does; where `mask_bound` is None, the mask is empty, (0,)."""
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


def packed_bytes(kind: int, rows: int, k: int) -> int:
    """Return how many bytes a matrix (rows, k) takes in the layout `kind`."""
    size: int = _library().questlm_packed_bytes(kind, rows, k)
    return size


def prepack(
    stored: Tensor, k: int, bits: int, kind: int, codes: bytes | None, unpacked: bytes
) -> tuple[Tensor, Tensor]:
    """Lay out the rows of an artifact.

    Args:
        stored: (rows, bytes) uint8, contiguous; or float32 or bfloat16 numbers (rows, k).
        bits: of a code in `stored`, 1 to 8; 0: ternary, five to a byte.
        kind: of the layout (packed/layout.h).
        codes: 256 bytes, what is laid out for each code; None: the code itself.
        unpacked: 256 bytes, the number that products take for each code.

    Returns:
        the layout, uint8, and the sum of each row's numbers, (rows) int32.
    """
    data = aligned_memory(packed_bytes(kind, len(stored), k))
    sums = torch.zeros(len(stored), dtype=torch.int32)
    failed = _library().questlm_prepack(
        stored.data_ptr(), stored.stride(0) * stored.element_size(), len(stored), k, bits, kind, codes, unpacked,
        data.data_ptr(), sums.data_ptr(), torch.get_num_threads(), _parallel(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for a buffer of one row of {k} entries")
    return data, sums


def packed_linear(weight: Packed, x: Tensor) -> Tensor:
    """The whole layer of x (tokens, k) float32, contiguous: (tokens, rows) float32."""
    y = torch.empty((len(x), weight.rows), dtype=torch.float32)
    failed = _library().questlm_packed_linear(
        ctypes.byref(weight), x.data_ptr(), len(x), y.data_ptr(), torch.get_num_threads(), _parallel()
    )
    if failed:
        raise MemoryError(f"no memory for a buffer of rows of {weight.k} entries")
    return y


def packed_product(
    weight: Packed, data: Tensor, step: Tensor | None, offset: Tensor | None, totals: Tensor | None
) -> Tensor:
    """The product with codes (tokens, k) uint8, or numbers (tokens, k) float32, contiguous: (tokens, rows) float32.

    Args:
        step: (tokens, 1) float32, contiguous, or None; offset: (1, 1) float32 or None.
        totals: (tokens, 1) float32, contiguous, sums of the rows of numbers where the weight has offsets, else None.
    """
    y = torch.empty((len(data), weight.rows), dtype=torch.float32)
    failed = _library().questlm_packed_product(
        ctypes.byref(weight), data.data_ptr(), None if step is None else step.data_ptr(),
        None if offset is None else offset.data_ptr(), None if totals is None else totals.data_ptr(), len(data),
        y.data_ptr(), torch.get_num_threads(), _parallel(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for a buffer of rows of {weight.k} entries")
    return y


def llama_step(
    model: ctypes.Structure, cache: ctypes.Structure, ids: Tensor, counts: Tensor | None, logits: Tensor
) -> None:
    """One step of a model (`questlm.ops.cpu.llama`).

    Args:
        ids: (batch, tokens) int64, counts: (batch,) int64 or None, logits: (batch, vocabulary) float32, all contiguous.
    """
    failed = _library().questlm_llama_step(
        ctypes.byref(model), ctypes.byref(cache), ids.data_ptr(), None if counts is None else counts.data_ptr(),
        *ids.shape, logits.data_ptr(), torch.get_num_threads(), _parallel(),
    )  # fmt: skip
    if failed == 1:
        raise MemoryError(f"no memory for the activations of {ids.numel()} tokens")
    if failed == 2:
        raise IndexError(f"token ids go from 0 to {logits.shape[1] - 1}, and there are others")
    if failed == 3:
        raise ValueError(f"counts must be from 0 to {ids.shape[1]} tokens, and fit the cache")


def rans_decode(
    stream: bytes, tables: Tensor, row_tables: Tensor | None, column_tables: Tensor | None, lanes: int, symbols: Tensor
) -> int:
    """Decode symbols (rows, columns) uint8 (`questlm.ops.cpu.rans`); returns a result of rans.c, 0 for success.

    Args:
        tables: (tables, levels) uint16, frequencies.
        row_tables: (rows,), column_tables: (columns,) int32, whose sum is the table of a symbol; None: zeros.
    """
    pointers = [None if part is None else part.data_ptr() for part in (row_tables, column_tables)]
    result: int = _library().questlm_rans_decode(
        stream, len(stream), tables.data_ptr(), *tables.shape, lanes, *pointers, *symbols.shape, symbols.data_ptr()
    )
    return result


def rans_encode(
    symbols: Tensor, tables: Tensor, row_tables: Tensor | None, column_tables: Tensor | None, lanes: int, stream: Tensor
) -> int:
    """Code symbols (rows, columns) uint8 into `stream`, (4 lanes + 2 rows columns,) uint8; arguments as above.

    Returns the bytes of the stream, or minus a result of rans.c.
    """
    pointers = [None if part is None else part.data_ptr() for part in (row_tables, column_tables)]
    size: int = _library().questlm_rans_encode(
        symbols.data_ptr(), tables.data_ptr(), *tables.shape, lanes, *pointers, *symbols.shape, stream.data_ptr()
    )
    return size


def argmax(x: Tensor) -> Tensor:
    """Return the index of the largest number of each row (rows, n) float32, contiguous; of equal ones the first."""
    found = torch.empty(len(x), dtype=torch.int64)
    _library().questlm_argmax(x.data_ptr(), *x.shape, found.data_ptr())
    return found


def all_finite(x: Tensor) -> bool:
    """Whether all numbers of a contiguous float32 tensor are finite."""
    return bool(_library().questlm_all_finite(x.data_ptr(), x.numel()))


def read(memory: Tensor) -> None:
    """Read a contiguous tensor once, on all threads. No product that reads each weight once can be faster."""
    _library().questlm_read(memory.data_ptr(), memory.nbytes, torch.get_num_threads(), _parallel())
