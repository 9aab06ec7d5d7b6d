"""Blocks are read as the numbers that they were made of, by the package gguf and, where it is there, by ggml itself."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from questlm.export.gguf.blocks import BLOCK_TYPES, fitting_type
from questlm.export.integers import IntegerRows

GRIDS = {  # of a type: low, high, stride, and columns
    "Q1_0": (-1, 1, 2, 256),
    "TQ2_0": (-1, 1, 1, 512),
    "Q2_K": (-3, 3, 2, 256),
    "Q4_0": (-7, 7, 2, 96),
    "Q4_K": (-15, 15, 2, 512),
    "Q5_0": (-15, 15, 2, 96),
    "Q5_K": (-31, 31, 2, 256),
    "Q8_0": (-127, 127, 1, 96),
}


def drawn(name: str, seed: int, rows: int = 3) -> IntegerRows:
    low, high, stride, columns = GRIDS[name]
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint((high - low) // stride + 1, (rows, columns), generator=draw, dtype=torch.int16)
    steps = torch.rand((rows, 1), generator=draw).half().float()
    return IntegerRows(codes * stride + low, steps, low, high, stride)


@pytest.mark.parametrize("name", [name for name in BLOCK_TYPES if name != "Q1_0"])  # which gguf 0.19 only names
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_the_package_gguf_reads_the_numbers(name: str, seed: int) -> None:
    rows = drawn(name, seed)
    read = quants.dequantize(BLOCK_TYPES[name].blocks(rows), GGMLQuantizationType[name])
    assert np.array_equal(read, rows.values * rows.step)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_ggml_reads_the_numbers(name: str) -> None:
    rows = drawn(name, 0)
    assert np.array_equal(ggml_values(name, BLOCK_TYPES[name].blocks(rows), rows.values.numel()), rows_of(rows))


def rows_of(rows: IntegerRows) -> NDArray[np.float32]:
    return (rows.values * rows.step).flatten().numpy()


def ggml_values(name: str, blocks: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    origin = find_spec("llama_cpp").origin
    library = ctypes.CDLL(str(Path(origin).parent / "lib" / "libggml-base.so"))
    symbol = name.lower().replace("_k", "_K")
    read = np.empty(count, np.float32)
    content = blocks.tobytes()
    getattr(library, f"dequantize_row_{symbol}")(content, read.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(count))
    return read


@pytest.mark.parametrize(
    ("grid", "name"),
    [
        *((grid, name) for name, grid in GRIDS.items()),
        ((-1, 1, 2, 64), "Q4_0"),
        ((-2, 1, 1, 256), "Q2_K"),
        ((-4, 3, 1, 256), "Q4_0"),
        ((-8, 7, 1, 32), "Q4_0"),
        ((-12, 12, 1, 256), "Q5_0"),
        ((-63, 63, 2, 512), "Q8_0"),
        ((-255, 255, 2, 256), None),
        ((-1, 1, 1, 48), None),
    ],
)
def test_the_smallest_type_that_holds_a_grid(grid: tuple[int, int, int, int], name: str | None) -> None:
    low, high, stride, columns = grid
    rows = IntegerRows(torch.zeros(1, columns, dtype=torch.int16), torch.ones(1, 1), low, high, stride)
    assert fitting_type(rows, columns) == name
