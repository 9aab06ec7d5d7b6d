"""The blockwise Hadamard transform against the dense Sylvester matrix."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.oracle import rotation, sylvester
from questlm import ops


@pytest.mark.parametrize("block_size", [2**k for k in range(11)])
def test_equals_the_dense_sylvester_matrix(block_size):
    x = torch.randn(2, 3, 2 * block_size, dtype=torch.float64)
    h = torch.block_diag(sylvester(block_size), sylvester(block_size))
    torch.testing.assert_close(ops.hadamard(x, block_size), x @ h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block_size", [1, 16, 128, 1024])
def test_is_its_own_inverse_and_keeps_the_norm(block_size, dtype):
    x = torch.randn(4, 2048, dtype=dtype)
    rotated = ops.hadamard(x, block_size)
    assert rotated.dtype == dtype
    torch.testing.assert_close(ops.hadamard(rotated, block_size), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_computed_in_float32(dtype):
    x = torch.randn(4, 256).to(dtype)
    rotated = ops.hadamard(x)
    assert rotated.dtype == dtype
    assert torch.equal(rotated, ops.hadamard(x.float()).to(dtype))


@pytest.mark.parametrize(("dimension", "block_size"), [(640, 128), (96, 32), (48, 16), (64, 64), (128, 128), (16, 16)])
def test_default_block_is_128_or_the_largest_that_divides(dimension, block_size):
    assert ops.fit_block_size(dimension) == block_size
    x = torch.randn(3, dimension, dtype=torch.float64)
    torch.testing.assert_close(ops.hadamard(x), x @ rotation(dimension, block_size), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dimension", [8, 24, 1, 127, 0])
def test_no_block_below_sixteen_is_chosen(dimension):
    with pytest.raises(ValueError, match=rf"\b{dimension}\b"):
        ops.hadamard(torch.zeros(2, dimension))


@pytest.mark.parametrize(("dimension", "block_size"), [(640, 256), (96, 64), (48, 32)])
def test_an_explicit_block_is_never_replaced(dimension, block_size):
    with pytest.raises(ValueError, match=rf"{block_size}.*{dimension}"):
        ops.hadamard(torch.zeros(2, dimension), block_size)


@pytest.mark.parametrize("block_size", [0, -1, -16, 3, 48, 127])
def test_a_block_that_is_no_power_of_two_is_refused(block_size):
    with pytest.raises(ValueError, match=f"power of two, not {block_size}"):
        ops.hadamard(torch.zeros(2, 48), block_size)


def test_gradients_check_numerically():
    x = torch.randn(2, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.hadamard(x, 16), (x,))
    assert torch.autograd.gradgradcheck(lambda x: ops.hadamard(x, 16).square(), (x,))


class LargestTensor(TorchDispatchMode):
    """Remembers the most entries that any result inside the block had."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_memory_grows_with_the_row_not_its_square():
    x = torch.randn(2, 16_384, requires_grad=True)
    with LargestTensor() as seen:
        ops.hadamard(x).sum().backward()
    assert x.numel() <= seen.entries <= max(x.numel(), 128 * 128)


def test_masked_hadamard_drops_what_the_bits_say():
    gradient = torch.randn(3, 64, dtype=torch.float64)
    mask = torch.randint(0, 2, (3, 64), dtype=torch.uint8)
    expected = (gradient * mask) @ rotation(64)
    torch.testing.assert_close(ops.masked_hadamard(gradient, ops.pack(mask, 2), 64), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ops.masked_hadamard(gradient, None, 64), gradient @ rotation(64), rtol=0, atol=1e-12)
