"""The int8 product: exact sums, and the same numbers as the product of levels."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.ops import Grid
from questlm.ops.reference import matmul as reference
from questlm.quant import gaussian_grid

triton = pytest.importorskip("triton")


def _encoded(rows: int, k: int, bits: int) -> tuple[ops.Operand, ops.Operand]:
    """Random rows as int8 codes, and the same as uint8 codes."""
    from questlm.ops.triton import operators

    grid = gaussian_grid(bits)
    assert isinstance(grid, Grid) and grid.step_per_scale is not None
    x = torch.randn(rows, k)
    data, step, _ = operators.quantize(x, 1, grid.levels, grid.step_per_scale, None, "int8")
    codes, plain_step, _ = ops.quantize(x, grid, 1)
    torch.testing.assert_close(step, plain_step)
    return ops.operand_of(data, step, grid), ops.Operand(codes, grid, step)


@pytest.mark.parametrize("bits", [5, 8])
@pytest.mark.parametrize(("rows", "columns", "k"), [(1, 16, 16), (37, 24, 80), (130, 256, 160), (128, 128, 128)])
def test_the_product_is_that_of_the_levels(bits: int, rows: int, columns: int, k: int) -> None:
    (x, x_plain), (w, w_plain) = _encoded(rows, k, bits), _encoded(columns, k, bits)
    y = ops.scaled_matmul(x, w, torch.bfloat16)
    exact = reference.scaled_matmul(*(o._replace(step=o.step.double()) for o in (x_plain, w_plain)), torch.float64)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=1e-5 * float(exact.abs().max()))  # one rounding


def test_operands_in_int8_stand_for_the_same_values() -> None:
    x, plain = _encoded(5, 48, 7)
    torch.testing.assert_close(ops.operand_values(x), ops.operand_values(plain))
    assert plain.grid is not None
    assert torch.equal(ops.plain_codes(x.data, plain.grid), plain.data)
    assert torch.equal(ops.codes_as(plain.data, plain.grid, torch.int8), x.data)


def test_one_factor_in_int8_and_one_in_another_form() -> None:
    x, x_plain = _encoded(5, 48, 8)
    w = torch.randn(7, 48)
    mixed, plain = (ops.scaled_matmul(o, ops.Operand(w), torch.float32) for o in (x, x_plain))
    torch.testing.assert_close(mixed, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [2, 4, 8, 16, 3])
def test_float8_levels_and_codes_are_one(levels: int) -> None:
    grid = Grid(levels, 1.0)
    codes = torch.arange(levels, dtype=torch.uint8).view(1, -1)
    written = ops.codes_as(codes, grid, torch.float8_e4m3fn)
    assert torch.equal(ops.plain_codes(written, grid), codes)
