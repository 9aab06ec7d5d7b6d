"""Many matrices at once give what each gives alone."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.quant import gaussian_grid

pytest.importorskip("triton")
SIZES = [(48, 16, (3, 170, 171, 1)), (640, 128, tuple(range(1, 21))), (128, 1, (5,)), (256, 256, (7, 7))]


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
@pytest.mark.parametrize(("k", "block", "rows"), SIZES)
def test_many_matrices_give_what_each_gives_alone(backend: str, k: int, block: int, rows: tuple[int, ...]) -> None:
    grid, xs = gaussian_grid(4), [torch.randn(n, k) for n in rows]
    gradients = [torch.randn(n, k) for n in rows]
    if backend == "cpu" and ops.unavailable("cpu"):
        pytest.skip("no native kernels here")
    with ops.using_backend(backend):
        many = ops.encode_many(xs, grid, block, 7.5, torch.float32)
        alone = [ops.encode(x, grid, block, 7.5, torch.float32) for x in xs]
        expected = [ops.masked_hadamard(g, e.mask, block) for g, e in zip(gradients, alone, strict=True)]
        ops.masked_hadamard_many(gradients, [e.mask for e in many], block)
    for got, want in zip(many, alone, strict=True):
        assert torch.equal(got.operand.data, want.operand.data)
        assert torch.equal(got.operand.step, want.operand.step)
        assert torch.equal(got.mask, want.mask)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_some_of_the_gradients_may_be_missing() -> None:
    grid, xs = gaussian_grid(2), [torch.randn(n, 64) for n in (3, 4, 5)]
    with ops.using_backend("triton"):
        many = ops.encode_many(xs, grid, 64, 1.5, torch.float32)
        gradients = [torch.randn(3, 64), torch.randn(5, 64)]
        masks = [many[0].mask, many[2].mask]
        expected = [ops.masked_hadamard(g, m, 64) for g, m in zip(gradients, masks, strict=True)]
        ops.masked_hadamard_many(gradients, masks, 64)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_no_mask_lets_everything_pass() -> None:
    gradients = [torch.randn(3, 64), torch.randn(5, 64)]
    expected = [ops.masked_hadamard(g, None, 64) for g in gradients]
    ops.masked_hadamard_many(gradients, [None, None], 64)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want)
