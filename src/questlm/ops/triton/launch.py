"""How kernels are started; and how they are compiled before that, side by side.

Triton compiles a kernel when it is first started, and who started it waits: a training step needs some twenty, one
second each, one after the other. So a step can be warmed up first: meanwhile nothing is started, only recorded, and
then all of it is compiled at once, on as many cores as there are. What is compiled must not depend on the
number of rows, then, which is another in a step than in a warm-up or in a validation's last batch; hence the
`do_not_specialize` of kernels, without which Triton makes another one of a number that 16 divides.

A software pipeline of several stages keeps as many tiles in shared memory. How many stages are fastest was measured on
GPUs with 227 KiB of it a program; many have 99. So a kernel that needs more than there is gets fewer stages.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

__all__ = ["compile_ahead", "start_kernel"]

_Call = tuple[Any, tuple[int, ...], list[Any], dict[str, Any]]
_recorded: list[_Call] | None = None  # of all threads: autograd has its own
_most_stages: dict[Any, int] = {}  # of kernels, by their function, that needed more shared memory than there is


def start_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run `kernel`, as kernel[grid](...) does; in a warm-up only record it.

    Raises:
        triton.runtime.errors.OutOfResources: it needs more shared memory than there is, with a single stage too.
    """
    if _recorded is not None:
        _recorded.append((kernel, grid, [_typical(argument) for argument in arguments], options))
        return
    while True:
        fitting = _fitting(kernel, options)
        try:
            kernel[grid](*arguments, **fitting)
            return
        except OutOfResources as problem:
            if problem.name != "shared memory" or not _take_a_stage(kernel, fitting):
                raise


def _fitting(kernel: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options with as many stages as shared memory has room for, as far as that is known."""
    most = _most_stages.get(kernel.fn) if _most_stages else None
    return options if most is None else {**options, "num_stages": min(most, options.get("num_stages", most))}


def _take_a_stage(kernel: Any, options: dict[str, Any]) -> bool:
    """Let `kernel` have one stage less than in `options` from now on; False if it has only one."""
    stages = int(options.get("num_stages", 1))
    if stages > 1:
        _most_stages[kernel.fn] = stages - 1
    return stages > 1


def _typical(argument: Any) -> Any:
    """What is compiled for such an argument: of a tensor only the dtype, where it begins at a multiple of 16 bytes."""
    aligned = isinstance(argument, torch.Tensor) and argument.data_ptr() % 16 == 0
    return argument.dtype if aligned else argument  # and not the tensor, whose memory it would hold


def compile_ahead(warm_up: Callable[[], object]) -> dict[str, int]:
    """Compile all kernels that `warm_up` starts. They do not run, so what it computes is undefined.

    One that cannot be compiled, or needs more shared memory than there is, says so when it is started.

    Returns:
        The most bytes of shared memory that a program of each kernel takes, by its name, of those that were compiled.
    """
    global _recorded
    if triton.knobs.runtime.interpret:  # nothing is compiled
        return {}
    calls: list[_Call] = []
    _recorded = calls
    try:
        warm_up()
    finally:
        _recorded = None
    device = driver.active.get_current_device()
    room = driver.active.utils.get_device_properties(device)["max_shared_mem"]
    taken: dict[str, int] = {}
    while calls:
        again = []
        for call, size in zip(calls, _shared_memory(calls), strict=True):
            if size is not None and size > room and _take_a_stage(call[0], _fitting(call[0], call[3])):
                again.append(call)
            elif size is not None:
                name = call[0].fn.__name__
                taken[name] = max(size, taken.get(name, 0))
        calls = again
    return taken


def _shared_memory(calls: list[_Call]) -> list[int | None]:
    """Bytes of shared memory that a program of each call takes; None where it cannot be compiled."""
    with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        compiled = [
            kernel.warmup(*arguments, grid=grid, **_fitting(kernel, options))
            for kernel, grid, arguments, options in calls
        ]
    # one that was compiled here is the promise of a kernel, one that was compiled before is the kernel
    found = [each.result(True) if hasattr(each, "result") else each for each in compiled]
    return [None if kernel is None else kernel.metadata.shared for kernel in found]
