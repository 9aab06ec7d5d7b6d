"""Bytes of coded tensors, known before they exist: from the entropy of a grid's codes on Gaussian rows. No torch."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import cast

import numpy as np

from questlm.artifact.coding import Rows, code_section
from questlm.artifact.format import TensorSpec
from questlm.config.quant import Bits
from questlm.grid import Grid
from questlm.quant.grids import gaussian_grid

__all__ = ["code_entropy", "coded_bytes"]

_SECTION = 8 + 4 + 2 * 64  # header, length of a stream, and what lanes' first states take at most in small matrices
_SAMPLE = (64, 512)


def code_entropy(grid: Grid) -> float:
    """Return the entropy of a code in bits on a row of Gaussian entries.

    A grid whose steps are learned, or are no multiple of the rms, is taken for the Gaussian grid of as many levels. A
    sparse one keeps the larger entries, which use all levels alike.
    """
    if grid.group:
        return math.log2(grid.levels)
    step = grid.step_per_scale if grid.scale == "rms" else None
    levels = [code - grid.zero_point for code in range(grid.levels)] if grid.table is None else list(grid.table)
    if step is None:
        bits: Bits = "ternary" if grid.levels == 3 else cast(Bits, max(1, round(math.log2(grid.levels))))
        step = gaussian_grid(bits).step_per_scale or 1.0
    edges = [-math.inf, *(step * (low + high) / 2 for low, high in pairwise(levels)), math.inf]
    below = [(1 + math.erf(edge / math.sqrt(2))) / 2 for edge in edges]
    shares = [high - low for low, high in pairwise(below)]
    return -sum(share * math.log2(share) for share in shares if share > 0)


def coded_bytes(spec: TensorSpec, kind: str, grid: Grid | None) -> int:
    """Return what a tensor takes in a single file.

    Args:
        spec: of the tensor.
        kind: 'codes', 'step', 'weight', ...
        grid: of the codes in it, where it holds codes of a grid.
    """
    if spec.codes is None:
        return min(round(spec.bytes * _share(spec.dtype, kind)), spec.bytes) + _SECTION
    levels, length = spec.codes
    bits = math.log2(6) / 4 if kind == "kept" else code_entropy(grid) if grid is not None else math.log2(levels)
    symbols = spec.shape[0] * length
    return min(spec.bytes + 8, round(1.001 * symbols * bits / 8) + 2 * levels + _SECTION)


@cache
def _share(dtype: str, kind: str) -> float:
    """Share of its bytes that a tensor of numbers keeps, found by coding a sample: entries, or sizes such as steps."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(_SAMPLE) * 0.02
    if kind not in ("weight", "codes"):
        values = 0.01 * np.exp(0.2 * values / 0.02)
    single = values.astype("<f4")
    if dtype == "I8":
        numbers = np.rint(127 * single / np.abs(single).max(axis=1, keepdims=True)).astype(np.int8)
    elif dtype == "BF16":
        numbers = (single.view("<u4") >> 16).astype("<u2")
    elif dtype == "F16":
        numbers = single.astype("<f2")
    else:
        numbers = single if dtype == "F32" else (single.view("<u4") >> 20).astype(np.uint8)
    planes = numbers.view(np.uint8).reshape(*_SAMPLE, -1)
    total = 0
    for index in range(planes.shape[2]):
        plane = np.ascontiguousarray(planes[..., index])
        total += len(code_section(Rows(_SAMPLE, 256, plane.tobytes, plane.__getitem__)))
    return total / numbers.nbytes
