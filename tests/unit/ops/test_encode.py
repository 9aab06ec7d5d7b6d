"""The operations on rows: formats of codes, steps and mask bits, and exact products."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.ops import Grid, Operand

GRIDS = [Grid(levels, 0.4) for levels in (2, 3, 4, 16, 255, 256)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.levels)
def test_formats(grid, dtype):
    codes, step, mask = ops.quantize(torch.randn(5, 48).to(dtype), grid, 16, mask_bound=1.0)
    assert (codes.dtype, codes.shape) == (torch.uint8, (5, 48))
    assert (step.dtype, step.shape) == (torch.float64 if dtype == torch.float64 else torch.float32, (5, 1))
    assert (mask.dtype, mask.shape) == (torch.uint8, (5, 6))
    assert ops.quantize(torch.randn(5, 48), grid, 16).mask is None


def test_without_rotation_codes_and_mask_are_those_of_the_entries():
    x = torch.tensor([[-3.0, -1.1, -0.2, 0.2, 1.1, 3.0, 0.1, -0.1, 0.9, -5.0]])
    step = 1 / x.square().mean().sqrt().item()
    codes, steps, mask = ops.quantize(x, Grid(4, step), 1, mask_bound=2.0)
    torch.testing.assert_close(steps, torch.ones(1, 1))
    assert codes.tolist() == [[0, 0, 1, 2, 3, 3, 2, 1, 2, 0]]
    assert ops.unpack(mask, 2, 10).tolist() == [[0, 1, 1, 1, 1, 0, 1, 1, 1, 0]]
    assert mask.tolist() == [[0b11011110, 0b01]]  # lowest bit first


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.levels)
def test_codes_reach_both_ends_of_the_grid_and_never_leave_it(grid):
    x = torch.cat([torch.linspace(-1, 1, 2000), torch.tensor([1e6, -1e6])]).unsqueeze(0)
    step = 2 / (grid.levels - 1) / x.square().mean().sqrt().item()
    codes, steps, _ = ops.quantize(x, Grid(grid.levels, step), 1)
    assert codes.unique().tolist() == list(range(grid.levels))
    values = ops.dequantize(codes, steps, grid)
    torch.testing.assert_close(values.abs().max(), torch.tensor(1.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
def test_products_of_codes_are_exact_in_float32(levels):
    generator = torch.Generator().manual_seed(levels)
    x, w = (torch.randint(0, levels, (n, 4096), dtype=torch.uint8, generator=generator) for n in (7, 5))
    grid, one_x, one_w = Grid(levels, 1.0), torch.ones(7, 1), torch.ones(5, 1)
    y = ops.scaled_matmul(Operand(x, grid, one_x), Operand(w, grid, one_w), torch.float32)
    exact = (x.double() - grid.zero_point) @ (w.double() - grid.zero_point).T
    assert y.dtype == torch.float32
    assert torch.equal(y.double(), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("x_bits", "w_bits"), [(4, 16), (16, 4), (16, 16), (8, 2)])
def test_products_of_values_and_codes(x_bits, w_bits, dtype):
    def factor(rows: int, bits: int):
        if bits == 16:
            values = torch.randn(rows, 64, dtype=torch.float64)
            return Operand(values.to(dtype)), values
        grid, step = Grid(2**bits, 0.5), torch.rand(rows, 1, dtype=torch.float64)
        codes = torch.randint(0, 2**bits, (rows, 64), dtype=torch.uint8)
        steps = step.to(torch.promote_types(dtype, torch.float32))
        return Operand(codes, grid, steps), (codes - grid.zero_point) * step

    torch.manual_seed(0)
    x, x_values = factor(6, x_bits)
    w, w_values = factor(3, w_bits)
    y = ops.scaled_matmul(x, w, dtype)
    assert y.dtype == dtype
    expected = x_values @ w_values.T
    assert (y.double() - expected).norm() / expected.norm() < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.levels)
def test_every_level_is_exact_in_sixteen_bits(grid, dtype):
    codes = torch.arange(grid.levels, dtype=torch.uint8).unsqueeze(0)
    expected = codes.double() - (grid.levels - 1) / 2
    assert torch.equal(ops.factor(codes, grid, dtype).double(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offsets", ["x", "w", "xw"])
def test_offsets_of_either_factor(offsets, dtype):
    torch.manual_seed(0)

    def factor(rows: int, name: str) -> Operand:
        codes = torch.randint(0, 4, (rows, 48), dtype=torch.uint8)
        offset = torch.randn(rows, 1, dtype=dtype) if name in offsets else None
        return Operand(codes, Grid(4, None, scale="one"), torch.rand(rows, 1, dtype=dtype), offset)

    x, w = factor(5, "x"), factor(3, "w")
    x_values, w_values = (ops.operand_values(each).double() for each in (x, w))
    torch.testing.assert_close(ops.scaled_matmul(x, w, dtype).double(), x_values @ w_values.T, rtol=1e-5, atol=1e-5)
    dy = torch.randn(5, 3, dtype=dtype)
    gradient = ops.operand_gradient(dy, w, dtype)
    torch.testing.assert_close(gradient.double(), dy.double() @ w_values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [1, 2])
def test_sparse_rows_survive_packing(group):
    rows = torch.randn(6, 48)
    kept = ops.kept_entries(rows, group)
    half, bits = ops.pack_sparse(rows * kept, kept, group)
    assert half.shape == (6, 24)
    assert bits.shape == (6, ops.packed_width(48 // group, 2))
    assert torch.equal(ops.unpack_sparse(half, bits, group, 0), rows * kept)


@pytest.mark.parametrize("width", [4, 12, 20])
def test_pairs_of_pairs_must_fill_the_row(width):
    with pytest.raises(ValueError, match="multiple of 8"):
        ops.kept_entries(torch.randn(2, width), 2)
