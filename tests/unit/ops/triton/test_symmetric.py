"""Symmetric products by halves: of every number of tiles, and of sizes that no tile divides."""

from __future__ import annotations

import pytest
import torch

from helpers.optimizer_checks import check_odd_polynomial, check_symmetry

pytest.importorskip("triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(20, 33), (128, 64), (130, 16), (300, 70)])
def test_one_half_is_the_mirror_of_the_other(rows: int, columns: int, dtype: torch.dtype) -> None:
    check_symmetry(rows, columns, "cpu", dtype)


@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 48, 32), (2, 150, 150)])
def test_the_polynomial_is_as_exact_as_the_references(shape: tuple[int, int, int]) -> None:
    check_odd_polynomial(shape, "cpu", torch.float32)
