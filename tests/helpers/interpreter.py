"""Whether Triton's interpreter can run kernels here: that of Triton 3.6 cannot beside NumPy 2.5."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

__all__ = ["interpreter_fault"]


@triton.jit
def _write_ones(out_ptr, count):  # type: ignore[no-untyped-def]
    for place in range(tl.program_id(0), count, tl.num_programs(0)):
        tl.store(out_ptr + place, 1.0)


@cache
def interpreter_fault() -> str | None:
    """Return why the interpreter cannot run a loop of three stores, or None."""
    out = torch.zeros(3)
    try:
        _write_ones[(1,)](out, 3)
    except Exception as problem:  # of Triton's own kind, around whatever it was
        return f"the interpreter of Triton {triton.__version__} fails beside NumPy {np.__version__}: {problem}"
    return None if bool(out.all()) else f"the interpreter of Triton {triton.__version__} computes wrong numbers"
