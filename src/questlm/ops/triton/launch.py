"""How kernels are started; and how they are compiled before that, side by side.

Triton compiles a kernel when it is first started, and who started it waits: a training step needs some twenty, one
second each, one after the other. So a step can be warmed up first: meanwhile nothing is started, only recorded, and
then all of it is compiled at once, on as many cores as there are. What is compiled must not depend on the
number of rows, then, which is another in a step than in a warm-up or in a validation's last batch; hence the
`do_not_specialize` of kernels, without which Triton makes another one of a number that 16 divides.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton

__all__ = ["compile_ahead", "start_kernel"]

_Call = tuple[Any, tuple[int, ...], list[Any], dict[str, Any]]
_recorded: list[_Call] | None = None  # of all threads: autograd has its own


def start_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run `kernel`, as kernel[grid](...) does; in a warm-up only record it."""
    if _recorded is None:
        kernel[grid](*arguments, **options)
    else:
        _recorded.append((kernel, grid, [_typical(argument) for argument in arguments], options))


def _typical(argument: Any) -> Any:
    """What is compiled for such an argument: of a tensor only the dtype, where it begins at a multiple of 16 bytes."""
    aligned = isinstance(argument, torch.Tensor) and argument.data_ptr() % 16 == 0
    return argument.dtype if aligned else argument  # and not the tensor, whose memory it would hold


def compile_ahead(warm_up: Callable[[], object]) -> None:
    """Compile all kernels that `warm_up` starts. They do not run, so what it computes is undefined.

    One that cannot be compiled says so when it is started.
    """
    global _recorded
    if triton.knobs.runtime.interpret:  # nothing is compiled
        return
    calls: list[_Call] = []
    _recorded = calls
    try:
        warm_up()
    finally:
        _recorded = None
    with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for kernel, grid, arguments, options in calls:
            kernel.warmup(*arguments, grid=grid, **options)
