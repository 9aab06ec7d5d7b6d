"""GPU kernels in Triton: whole rows in one pass, with what surrounds a quantised product fused into it.

`device` holds what the kernels share, `tiles` how rows are cut, one file each has a kernel, `launch` starts them or has
them compiled before, and `operators` makes them operators of torch. Imported on use. `benchmarks/bench_kernels.py`
measures each against its floor, the bytes to move.

They run wherever Triton does: on GPUs of NVIDIA and AMD, and slowly on a CPU under its interpreter
(TRITON_INTERPRET=1), which is how they are tested without a GPU.
"""

from __future__ import annotations

import triton

from questlm.ops.triton.tiles import fits

__all__ = ["fits", "interpreted"]


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter, on tensors of a CPU."""
    return bool(triton.knobs.runtime.interpret)
