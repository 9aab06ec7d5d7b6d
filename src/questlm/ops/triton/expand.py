"""Packed weights as levels in memory, for products with many rows, where the product takes far longer than this."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["expand"]


@triton.jit
def expand(
    low_ptr, high_ptr, out_ptr, k, zero,
    BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, IN_ORDER: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Levels (rows, k) in the dtype of `out_ptr`, of rows of LOW bytes in planes, and of HIGH bytes of high bits.

    A code c has the level c - zero. HIGH is 0 where there are no high bits.
    """
    row = tl.program_id(0).to(tl.int64)
    for start in range(tl.program_id(1) * DEPTH, k, tl.num_programs(1) * DEPTH):
        entry = start + tl.arange(0, DEPTH)
        inside = entry < k
        if IN_ORDER:
            code = (tl.load(low_ptr + row * LOW + entry // 8, mask=inside, other=0).to(tl.int32) >> (entry % 8)) & 1
        else:
            packed = tl.load(low_ptr + row * LOW + entry % LOW, mask=inside, other=0)
            if BITS == 8:
                packed = packed.to(tl.int8, bitcast=True)
            packed = packed.to(tl.int32)
            code = packed if BITS == 8 else (packed >> (BITS * (entry // LOW))) & (2**BITS - 1)
        if HIGH > 0:
            packed = tl.load(high_ptr + row * HIGH + entry % HIGH, mask=inside, other=0).to(tl.int32)
            code += ((packed >> (entry // HIGH)) & 1) * 4
        level = code.to(tl.float32) - zero
        tl.store(out_ptr + row * k + entry, level.to(out_ptr.dtype.element_ty), mask=inside)
