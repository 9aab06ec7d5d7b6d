"""The layout of packed weights on a GPU: codes come back from it, and sums are those of the codes."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.grid import Grid

triton = pytest.importorskip("triton")


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 8, 16, 23, 256])
@pytest.mark.parametrize("k", [5, 32, 272])
def test_levels_come_back_from_words(levels: int, k: int) -> None:
    from questlm.ops.triton import packed_linear as packed
    from questlm.ops.triton.words import layout_bits

    codes = torch.randint(levels, (3, k), dtype=torch.uint8)
    tensors = {"codes": ops.pack(codes, levels), "step": torch.ones(3, 1)}
    for act in (None, Grid(2, 1.0), Grid(256, 1.0)):
        matrix = packed.lay_out_matrix(tensors, Grid(levels, 1.0), act, k, torch.device("cpu"))
        assert matrix.bits == layout_bits(Grid(levels, 1.0), act, k)
        assert torch.equal(packed.levels(matrix, torch.float32), codes.float() - (levels - 1) / 2)
        shift = 128 if matrix.bits == 8 else 0
        assert torch.equal(matrix.words.sums, codes.sum(-1, dtype=torch.int32) - shift * k)
