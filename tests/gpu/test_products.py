"""On a CUDA device: products of int8 codes and of float8 gradients, and the kernels over many matrices."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.ops import Operand
from questlm.ops.reference import matmul as reference
from questlm.quant import gaussian_grid

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("bits", [5, 8])
@pytest.mark.parametrize(("rows", "columns", "k"), [(37, 48, 640), (300, 256, 208), (128, 1024, 2816)])
def test_the_int8_product_is_exact_up_to_its_last_rounding(bits: int, rows: int, columns: int, k: int) -> None:
    grid, x, w = gaussian_grid(bits), torch.randn(rows, k, device="cuda"), torch.randn(columns, k, device="cuda")
    operands = [ops.encode(m, grid, 16, None, torch.bfloat16).operand for m in (x, w)]
    assert operands[0].data.dtype is torch.int8
    y = ops.scaled_matmul(*operands, torch.bfloat16)
    exact = [ops.operand_values(o).double() for o in operands]
    expected = exact[0] @ exact[1].T
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=1e-5 * float(expected.abs().max()))


def test_float8_gradients_are_those_of_the_same_numbers_in_float32() -> None:
    dy, w = torch.randn(64, 96, device="cuda"), torch.randn(96, 128, device="cuda")
    fast = ops.operand_gradient(dy.bfloat16(), Operand(w), torch.bfloat16, float8=True)
    plain = ops.operand_gradient(dy.bfloat16().cpu(), Operand(w.cpu()), torch.float32, float8=True)
    # Tensor cores keep about 14 bits of such sums; the rounding of the factors themselves is ten times as coarse.
    assert float((fast.cpu().double() - plain.double()).norm() / plain.double().norm()) < 8e-3


def test_a_16_bit_gradient_of_weights_leaves_the_product_unrounded() -> None:
    dy, x = torch.randn(96, 64, device="cuda").bfloat16(), torch.randn(64, 128, device="cuda").bfloat16()
    exact = dy.double() @ x.double()
    got = ops.operand_gradient(dy, Operand(x), torch.bfloat16, torch.float32)
    rounded = reference.operand_gradient(dy, Operand(x), torch.bfloat16)
    assert float((got - exact).norm()) < 0.1 * float((rounded.double() - exact).norm())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_many_matrices_give_what_each_gives_alone(bits: int) -> None:
    grid, xs = (
        gaussian_grid(bits),
        [torch.randn(n, 640, device="cuda") for n in (640, 1792, 640, 12, 1, 640, 7, 8, 9, 10)],
    )
    bound = grid.levels / 2
    many = ops.encode_many(xs, grid, 128, bound, torch.bfloat16)
    alone = [ops.encode(x, grid, 128, bound, torch.bfloat16) for x in xs]
    gradients = [torch.randn_like(x) for x in xs]
    expected = [ops.masked_hadamard(g, e.mask, 128) for g, e in zip(gradients, alone, strict=True)]
    ops.masked_hadamard_many(gradients, [e.mask for e in many], 128)
    for got, want in zip(many, alone, strict=True):
        assert torch.equal(got.operand.data.float(), want.operand.data.float())
        assert torch.equal(got.operand.step, want.operand.step) and torch.equal(got.mask, want.mask)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
