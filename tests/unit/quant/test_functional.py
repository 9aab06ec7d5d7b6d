"""One tensor through the method: where values may lie, and where gradients pass."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.oracle import BITS, ROLES, SCALE, level_count, quantize_rows, rotation
from questlm import ops
from questlm.errors import ConfigError
from questlm.ops.reference.quantize import to_codes
from questlm.quant import dequantize, fake_quantize, gaussian_grid, quantize

SHAPES = [(16,), (3, 48), (1, 96), (2, 3, 640), (5, 128)]


def rows_of(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Rows that differ in scale and are not Gaussian, so that no normalisation can be skipped unseen."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-2, 1, max(1, shape[0] if len(shape) > 1 else 1), dtype=torch.float64)
    return (x * scales.view(-1, *[1] * (len(shape) - 1)) * (1 + x.square())).to(dtype).reshape(shape)


def trust_mask(x: torch.Tensor, bits: int | str, role: str = "weight") -> torch.Tensor:
    """The mask, seen from outside: a gradient of ones comes back as IHT(mask)."""
    x = x.clone().requires_grad_()
    fake_quantize(x, bits=bits, role=role).sum().backward()
    mask = ops.hadamard(x.grad)
    assert torch.minimum(mask.abs(), (mask - 1).abs()).max() < 1e-4
    return mask > 0.5


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("bits", BITS)
def test_values_lie_on_the_grid_of_their_row(bits, role):
    x, n = rows_of(0, 4, 640), level_count(bits)
    values = fake_quantize(x, bits=bits, role=role)
    rms = x.square().mean(-1, keepdim=True).sqrt()  # the transform is orthonormal: rms(HT x) = rms(x)
    step = 2 * SCALE[bits] / (n - 1) * rms
    codes = values / step + (n - 1) / 2
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-6)
    assert codes.round().min() >= 0
    assert codes.round().max() <= n - 1
    assert all(len(row.unique()) <= n for row in values)


@pytest.mark.parametrize("bits", BITS)
def test_each_value_is_the_nearest_level(bits):
    x, n = rows_of(1, 3, 256), level_count(bits)
    rotated, values = x @ rotation(256), fake_quantize(x, bits=bits)
    _, step = quantize(x, bits=bits)
    grid = (torch.arange(n) - (n - 1) / 2) * step  # (rows, n)
    nearest = (rotated.unsqueeze(-1) - grid.unsqueeze(1)).abs().min(-1).values
    torch.testing.assert_close((values - rotated).abs(), nearest, rtol=0, atol=1e-9)
    inside = rotated.abs() <= grid.max(-1, keepdim=True).values
    assert ((values - rotated).abs() <= step / 2 * (1 + 1e-9))[inside].all()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("bits", BITS)
def test_scale_is_the_closed_form(bits, role):
    x = rows_of(2, 5, 96)
    _, step = quantize(x, bits=bits, role=role)
    rms = (x @ rotation(96)).square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(step, 2 * SCALE[bits] / (level_count(bits) - 1) * rms, rtol=1e-9, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_codes_and_scales_stand_for_the_fake_quantized_values(bits):
    x = rows_of(3, 2, 3, 48)
    codes, step = quantize(x, bits=bits)
    assert codes.dtype == torch.uint8
    assert (codes.shape, step.shape) == ((2, 3, 48), (2, 3, 1))
    assert torch.equal(dequantize(codes, step, bits=bits), fake_quantize(x, bits=bits))
    back = dequantize(codes, step, bits=bits, rotate_back=True)
    assert torch.equal(back, fake_quantize(x, bits=bits, rotate_back=True))


@pytest.mark.parametrize("bits", BITS)
def test_quantizing_the_quantized_with_the_same_step_changes_nothing(bits):
    codes, step = quantize(rows_of(4, 3, 128), bits=bits)
    grid = gaussian_grid(bits)
    assert torch.equal(to_codes(ops.dequantize(codes, step, grid), step, grid), codes)


@pytest.mark.parametrize("bits", BITS)
def test_odd_symmetry(bits):
    x = rows_of(5, 3, 640)
    assert torch.equal(fake_quantize(-x, bits=bits), -fake_quantize(x, bits=bits))


@pytest.mark.parametrize("bits", [*BITS, 16])
def test_values_equal_the_oracle(bits):
    for shape in SHAPES:
        x = rows_of(7, *shape)
        expected = quantize_rows(x.reshape(-1, shape[-1]), bits)[0].reshape(shape)
        torch.testing.assert_close(fake_quantize(x, bits=bits), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("bits", BITS)
def test_float32_codes_differ_from_float64_by_rounding_alone(bits):
    x = rows_of(8, 16, 640, dtype=torch.float32)
    codes, step = quantize(x, bits=bits)
    exact_codes, exact_step = quantize(x.double(), bits=bits)
    assert step.dtype == torch.float32
    torch.testing.assert_close(step.double(), exact_step, rtol=1e-6, atol=0)
    difference = (codes.int() - exact_codes.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() <= 1e-3


@pytest.mark.parametrize("bits", BITS)
def test_bfloat16_rows_are_quantized_as_their_float32_values(bits):
    x = rows_of(9, 4, 128, dtype=torch.bfloat16)
    codes, step = quantize(x, bits=bits)
    wide_codes, wide_step = quantize(x.float(), bits=bits)
    assert torch.equal(codes, wide_codes) or (codes.int() - wide_codes.int()).abs().max() <= 1
    torch.testing.assert_close(step, wide_step, rtol=1e-6, atol=0)
    assert fake_quantize(x, bits=bits).dtype == torch.bfloat16


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("bits", BITS)
def test_trust_mask_is_the_closed_form(bits, role):
    x = rows_of(10, 3, 640)
    _, expected = quantize_rows(x, bits)
    assert torch.equal(trust_mask(x, bits, role), expected.bool())
    assert 0 < (~expected.bool()).float().mean() < 0.5


@pytest.mark.parametrize("bits", BITS)
def test_masked_share_of_a_gaussian(bits):
    n = level_count(bits)
    beyond = 1.30 * SCALE[1] if bits == 1 else SCALE[bits] * n / (n - 1)  # a* and half a step more
    expected = math.erfc(beyond / math.sqrt(2))
    x = torch.randn(16, 65_536, generator=torch.Generator().manual_seed(11))
    masked = (~trust_mask(x, bits)).double().mean().item()
    assert abs(masked - expected) < 4 * math.sqrt(expected * (1 - expected) / x.numel())


@pytest.mark.parametrize("rotate_back", [False, True])
@pytest.mark.parametrize("bits", [*BITS, 16])
def test_gradient_equals_the_oracle(bits, rotate_back):
    for shape in SHAPES:
        x = rows_of(12, *shape).requires_grad_()
        dy = rows_of(13, *shape)
        fake_quantize(x, bits=bits, rotate_back=rotate_back).backward(dy)
        h = rotation(shape[-1])
        _, mask = quantize_rows(x.reshape(-1, shape[-1]), bits)
        incoming = dy.reshape(-1, shape[-1]) @ h if rotate_back else dy.reshape(-1, shape[-1])
        torch.testing.assert_close(x.grad, ((mask * incoming) @ h).reshape(shape), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("block_size", [1, 2, 16, 32, 64])
@pytest.mark.parametrize("bits", [2, 4, "ternary"])
def test_gradient_equals_the_oracle_for_explicit_blocks(bits, block_size):
    x = rows_of(14, 3, 192).requires_grad_()
    dy = rows_of(15, 3, 192)
    values = fake_quantize(x, bits=bits, block_size=block_size)
    values.backward(dy)
    expected, mask = quantize_rows(x, bits, block_size)
    torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(x.grad, (mask * dy) @ rotation(192, block_size), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("bits", BITS)
def test_backward_keeps_mask_bits_only(bits):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fake_quantize(torch.randn(6, 640, requires_grad=True), bits=bits)
    assert [(t.dtype, t.shape) for t in saved] == [(torch.uint8, (6, 80))]


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_zeros_stays_zero_with_a_finite_gradient(bits):
    x = torch.zeros(2, 128)
    x[1] = torch.randn(128)
    x.requires_grad_()
    values = fake_quantize(x, bits=bits)
    values.sum().backward()
    assert values[0].abs().max() == 0
    assert values[1].abs().max() > 0
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_a_row_that_is_not_finite_never_becomes_finite(bits):
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.ones(2, 128)
        x[0, 5] = bad
        values = fake_quantize(x, bits=bits)
        assert not values[0].isfinite().any()
        assert values[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 48)], ids=str)
def test_no_rows_are_no_problem(shape):
    x = torch.zeros(shape, requires_grad=True)
    fake_quantize(x).sum().backward()
    assert x.grad.shape == shape


def test_non_contiguous_rows_give_the_same():
    x = rows_of(16, 128, 3).T
    assert torch.equal(fake_quantize(x), fake_quantize(x.contiguous()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 9}, "9"),
        ({"bits": "two"}, "two"),
        ({"method": "qest"}, "Did you mean 'quest'"),
        ({"role": "gradient"}, "'weight' and 'activation'"),
        ({"block_size": 48}, "power of two"),
        ({"block_size": 256}, "256"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        fake_quantize(torch.zeros(2, 128), **arguments)


def test_a_dimension_without_a_block_is_refused():
    with pytest.raises(ConfigError, match="40"):
        fake_quantize(torch.zeros(2, 40))


def test_sixteen_bits_have_no_codes():
    with pytest.raises(ConfigError, match="not quantised"):
        quantize(torch.zeros(2, 128), bits=16)
