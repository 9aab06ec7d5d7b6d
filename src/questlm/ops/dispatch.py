"""Which implementation runs an operation: one table, and the function that chooses from it.

`IMPLEMENTATIONS` lists the implementations of each operation, fastest first. Each has a function `can_run`, which gets
the case (the tensors and settings that decide, see there) and returns None, or the reason why it cannot run that case.
With the backend `auto`, `choose` takes the first that can. The last one always can.

A backend named with `using_backend` is a request: an operation that this backend implements runs there, or a
BackendError says why it cannot. Implementations whose name is no backend's (a product of the GPU's own, two steps in
one kernel) remain free to be chosen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from questlm.errors import BackendError, nearest_name, quoted
from questlm.grid import Grid
from questlm.ops.machine import constant_when_compiled, no_nvidia, unavailable
from questlm.ops.reference.matmul import Operand

__all__ = [
    "BACKENDS",
    "IMPLEMENTATIONS",
    "Implementation",
    "choose",
    "compile_ahead",
    "reasons",
    "requested",
    "select",
    "using_backend",
]

BACKENDS = ("auto", "reference", "cpu", "triton")

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FLOAT8 = torch.float8_e4m3fn
_FLOAT8_LEVELS = 16
"""More half-integer levels than these are not all values of float8 (E4M3)."""
_requested = "auto"


class Implementation(NamedTuple):
    """One way to compute an operation.

    Attributes:
        name: a backend's, or one that says what is special about it.
        can_run: (*case) -> None, or the reason why it cannot run that case.
        where: "module:class", of packed weights, which are imported when they are used.
    """

    name: str
    can_run: Callable[..., str | None]
    where: str = ""


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


def requested() -> str:
    """The backend that `using_backend` names, or 'auto'."""
    return _requested


def choose(operation: str, *case: object) -> str:
    """Name of the implementation that runs `operation` for this case.

    Raises:
        BackendError: the requested backend implements the operation, but cannot run this case.
    """
    return select(operation, *case).name


def select(operation: str, *case: object) -> Implementation:
    """As `choose`, the implementation itself."""
    implementations = IMPLEMENTATIONS[operation]
    if _requested != "auto":
        for implementation in implementations:
            if implementation.name == _requested:
                _require(operation, implementation, case)
                return implementation
    for implementation in implementations:
        if _free(implementation.name) and implementation.can_run(*case) is None:
            return implementation
    raise AssertionError(f"no implementation of {operation} runs everywhere")


def reasons(operation: str, *case: object) -> list[tuple[str, str | None]]:
    """(name, None or the reason why it cannot run this case) of each implementation of `operation`, fastest first."""
    return [(each.name, each.can_run(*case)) for each in IMPLEMENTATIONS[operation]]


def compile_ahead(warm_up: Callable[[], object], device: torch.device) -> None:
    """Compile at once, on all cores, the kernels that `warm_up` needs on `device`, where they are compiled on use.

    What it computes is undefined, as kernels do not run in it; gradients and the like are its caller's to clear.
    """
    if device.type == "cuda" and _requested != "reference" and unavailable("triton") is None:
        importlib.import_module("questlm.ops.triton.launch").compile_ahead(warm_up)


def _free(name: str) -> bool:
    """Whether an implementation may run that was not asked for by its name."""
    return _requested == "auto" or name == "reference" or name not in BACKENDS


def _require(operation: str, implementation: Implementation, case: tuple[object, ...]) -> None:
    reason = implementation.can_run(*case)
    if reason is not None:
        raise BackendError(
            f"the {implementation.name} backend cannot run {operation} here: {reason}; use the backend 'auto' or "
            "'reference'"
        )


def _anything(*case: object) -> None:
    return None


def _in_triton(x: Tensor) -> str | None:
    reason = unavailable("triton")
    if reason is not None:
        return reason
    if x.dtype not in _TRITON_DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16, not {x.dtype}"
    if not x.is_cuda and (_requested != "triton" or x.device.type != "cpu"):
        return "the rows are not on a GPU, and Triton's interpreter, which is slow, runs only on request"
    return None


def _rows_in_triton(x: Tensor, block_size: int = 1) -> str | None:
    reason = _in_triton(x)
    if reason is None and not _triton_fits(x.shape[-1], block_size):
        return f"the Triton kernels do not take rows of {x.shape[-1]} in blocks of {block_size}"
    return reason


@constant_when_compiled  # imports a module
def _triton_fits(k: int, block_size: int) -> bool:
    fits: bool = importlib.import_module("questlm.ops.triton").fits(k, block_size)
    return fits


def _rows_in_native_code(x: Tensor, block_size: int = 1) -> str | None:
    reason = unavailable("cpu")
    if reason is not None:
        return reason
    if x.dtype is not torch.float32:
        return f"the native kernels take float32, not {x.dtype}"
    return None if x.device.type == "cpu" else "the rows are not on the CPU"


def _in_native_code() -> str | None:
    return unavailable("cpu")


def _fused(x: Tensor, block_size: int, grid: Grid, dtype: torch.dtype) -> str | None:
    if not grid.plain:
        return "the kernels are made for evenly spaced levels around 0, with steps in proportion to the row's rms"
    if dtype is torch.float16:
        return "the fused kernels round to float32 or bfloat16, not to float16"
    return _fused_backward(x, block_size)


def _fused_backward(x: Tensor, block_size: int) -> str | None:
    chosen = choose("quantize", x, block_size) if _requested in ("auto", "triton") else _requested
    return None if chosen == "triton" else f"it is a Triton kernel, and rows are quantised by {chosen} here"


def _quantize_in_one_launch(xs: Sequence[Tensor], block_size: int, grid: Grid) -> str | None:
    return _fused(xs[0], block_size, grid, torch.float32) if xs else "there are no rows"


def _rotate_in_one_launch(gradients: Sequence[Tensor], joined: Tensor | None, block_size: int) -> str | None:
    if joined is None:
        return "the masks are not the rows of one matrix"
    if not all(gradient.is_contiguous() for gradient in gradients):
        return "not all gradients are contiguous"
    return _fused_backward(gradients[0], block_size)


def _momentum_in_one_launch(first: Sequence[Tensor], second: Sequence[Tensor], stack: Tensor) -> str | None:
    chosen = choose("odd_polynomial", stack)
    if chosen != "triton":
        return f"it is a Triton kernel, and matrices are multiplied by {chosen} here"
    for one, other in zip(first, second, strict=True):
        if one.dtype not in _TRITON_DTYPES or other.dtype not in _TRITON_DTYPES:
            return f"the Triton kernels take float32, bfloat16 and float16, not {one.dtype} and {other.dtype}"
        if one.stride() != other.stride() or not (one.is_contiguous() or one.mT.is_contiguous()):
            return "not all matrices are contiguous or transposed views of such"
    return None if stack.is_contiguous() else "the stack of matrices is not contiguous"


def _codes_in_float8(device: torch.device, grid: Grid, dtype: torch.dtype) -> str | None:
    reason = no_nvidia(device, 9, "float8 products")
    if reason is None and grid.levels > _FLOAT8_LEVELS:
        return f"the levels of a grid of {grid.levels} are not all values of float8"
    return reason or _only_bfloat16(dtype)


def _codes_in_int8(device: torch.device, grid: Grid, dtype: torch.dtype) -> str | None:
    reason = no_nvidia(device, 8, "int8 products in Triton")
    if reason is None and grid.levels <= _FLOAT8_LEVELS:
        return f"up to {_FLOAT8_LEVELS} levels are multiplied in float8, or in bfloat16 where a GPU has no such product"
    if reason is None and grid.levels % 2:
        return f"an odd number of levels ({grid.levels}) is not half above whole numbers"
    return reason or _only_bfloat16(dtype)


def _only_bfloat16(dtype: torch.dtype) -> str | None:
    return None if dtype is torch.bfloat16 else f"the result comes in bfloat16, not in {dtype}"


def _product_in_float8(x: Operand, w: Operand, dtype: torch.dtype) -> str | None:
    if x.step is None or w.step is None:
        return "a factor has no steps"
    return _matrices_in_float8(x.data, w.data, dtype)


def _matrices_in_float8(a: Tensor, b: Tensor, dtype: torch.dtype) -> str | None:
    reason = no_nvidia(a.device, 9, "float8 products")
    if reason is not None:
        return reason
    if a.dtype is not _FLOAT8 or b.dtype is not _FLOAT8:
        return f"the factors are {a.dtype} and {b.dtype}, not {_FLOAT8}"
    for shape, what in ((a.shape[1], "rows"), (b.shape[0], "columns")):
        if shape % 16:
            return f"{what} of {shape} are not a multiple of 16"
    return _only_bfloat16(dtype)


def _product_in_int8(x: Operand, w: Operand, dtype: torch.dtype) -> str | None:
    device = x.data.device
    reason = unavailable("triton") or (no_nvidia(device, 8, "int8 products in Triton") if x.data.is_cuda else None)
    if reason is not None:
        return reason
    if x.step is None or w.step is None:
        return "a factor has no steps"
    if x.data.dtype is not torch.int8 or w.data.dtype is not torch.int8:
        return f"the factors are {x.data.dtype} and {w.data.dtype}, not {torch.int8}"
    return _only_bfloat16(dtype)


def _llama_in_native_code(device: torch.device, dtype: torch.dtype, refused: Mapping[str, str]) -> str | None:
    if device.type != "cpu":
        return "the model is not on the CPU"
    if dtype is not torch.float32:
        return f"it computes in float32, not in {dtype}"
    reason = unavailable("cpu")
    return reason or next((f"{layer}: {why}" for layer, why in refused.items()), None)


def _packed(name: str, where: str) -> Implementation:
    """The class `where` of packed weights, which says itself what it can run."""

    def can_run(*case: object) -> str | None:
        module, _, found = where.partition(":")
        reason: str | None = getattr(importlib.import_module(module), found).can_run(*case)
        return reason

    return Implementation(name, can_run, where)


_REFERENCE = Implementation("reference", _anything)

IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {
    # (x, block size): rows (rows, K) and the size of their Hadamard blocks
    "quantize": (
        Implementation("triton", _rows_in_triton),
        Implementation("cpu", _rows_in_native_code),
        _REFERENCE,
    ),
    "masked_hadamard": (
        Implementation("triton", _rows_in_triton),
        Implementation("cpu", _rows_in_native_code),
        _REFERENCE,
    ),
    # the same, for grids that are not evenly spaced around 0 with steps by the rms
    "quantize_other_grids": (_REFERENCE,),
    # (matrices, block size, grid), and (gradients, the matrix whose rows all masks are or None, block size)
    "quantize_many": (Implementation("one launch", _quantize_in_one_launch), Implementation("one by one", _anything)),
    "masked_hadamard_many": (
        Implementation("one launch", _rotate_in_one_launch),
        Implementation("one by one", _anything),
    ),
    # (x, block size, grid, dtype that the norm or activation is rounded to), and (gradient, block size)
    "norm_quantize": (Implementation("fused", _fused), Implementation("composed", _anything)),
    "norm_quantize_backward": (Implementation("fused", _fused_backward), Implementation("composed", _anything)),
    "swiglu_quantize": (Implementation("fused", _fused), Implementation("composed", _anything)),
    "swiglu_quantize_backward": (Implementation("fused", _fused_backward), Implementation("composed", _anything)),
    # (device, grid, dtype of the product): the dtype in which the Triton kernels write codes
    "code_dtype": (
        Implementation("float8", _codes_in_float8),
        Implementation("int8", _codes_in_int8),
        Implementation("uint8", _anything),
    ),
    # (x, w, dtype): two operands, and the dtype of the product
    "scaled_matmul": (
        Implementation("float8", _product_in_float8),
        Implementation("int8", _product_in_int8),
        _REFERENCE,
    ),
    # (a, b, dtype): matrices (rows, K) and (columns, K) of float8
    "float8_gradient": (Implementation("float8", _matrices_in_float8), _REFERENCE),
    # (matrices), a batch (count, rows, columns)
    "odd_polynomial": (Implementation("triton", _in_triton), _REFERENCE),
    # (matrices, matrices of the same strides, a stack of as many), in optimizers
    "momentum": (Implementation("one launch", _momentum_in_one_launch), Implementation("one by one", _anything)),
    # (tensors, format, device, dtype, stay packed): the arguments of ops.prepack
    "packed_linear": (
        _packed("cpu", "questlm.ops.cpu.linear:NativeWeight"),
        _packed("triton", "questlm.ops.triton.weight:TritonWeight"),
        _packed("unpacked", "questlm.ops.unpacking:UnpackedWeight"),
        _packed("reference", "questlm.ops.unpacking:TiledWeight"),
    ),
    # (logits,): rows (rows, n)
    "argmax": (Implementation("cpu", _rows_in_native_code), _REFERENCE),
    "all_finite": (Implementation("cpu", _rows_in_native_code), _REFERENCE),
    # (): symbols of a single file, whose reference is `questlm.artifact.rans`
    "entropy_coding": (Implementation("cpu", _in_native_code), _REFERENCE),
    # (device, dtype, layers that cannot be in a native forward pass, with the reason): a step of a whole packed model
    "llama_step": (Implementation("native", _llama_in_native_code), Implementation("layer by layer", _anything)),
}
"""The implementations of each operation, fastest first; above each operation stands what its case is made of."""
