from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.artifact.matrices import _on_grid


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 15, 16, 32, 64, 128, 255, 256])
def test_what_packing_gives_is_on_the_grid_and_spare_bits_are_not(levels: int) -> None:
    for length in range(1, 20):
        packed = ops.pack(torch.full((3, length), levels - 1, dtype=torch.uint8), levels)
        assert _on_grid(packed, levels, length)
        spare = length % 5 if levels == 3 else length * (levels - 1).bit_length() % 8
        if spare:
            packed[1, -1] = 255
            assert not _on_grid(packed, levels, length)


def test_five_ternary_codes_make_at_most_242() -> None:
    packed = torch.tensor([[242, 0], [0, 242]], dtype=torch.uint8)
    assert _on_grid(packed, 3, 10)
    packed[0, 0] = 243
    assert not _on_grid(packed, 3, 10)


@pytest.mark.parametrize("levels", [5, 15, 255])
def test_a_code_beyond_an_odd_grid_is_found(levels: int) -> None:
    codes = torch.zeros(2, 9, dtype=torch.uint8)
    codes[1, 4] = levels
    assert not _on_grid(ops.pack(codes, levels + 1), levels, 9)
