"""The quantised layer against the oracle: output, gradients, what it keeps, and which precision it runs in."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.oracle import BITS, linear, rotation
from questlm import QuantSpec, prepare
from questlm.quant import FakeQuantLinear, fake_quantize

FORMATS = [
    *[(b, b) for b in BITS],
    *[(b, 16) for b in BITS],
    *[(16, b) for b in BITS],
    (1, 8),
    (8, 1),
    (4, 8),
    (2, 3),
    ("ternary", 8),
    (4, "ternary"),
]
SHAPES = [((16,), 7), ((1, 48), 24), ((2, 3, 96), 1), ((5, 640), 16), ((2, 1, 4, 128), 3)]


def make_layer(k: int, out: int, weight_bits, act_bits, seed: int = 0, bias: bool = True, block_size: int = 128):
    torch.manual_seed(seed)
    linear = nn.Linear(k, out, bias=bias)
    with torch.no_grad():
        linear.weight.normal_().mul_(torch.logspace(-2, 0, out).unsqueeze(1))
    spec = QuantSpec(weight_bits=weight_bits, act_bits=act_bits, block_size=block_size)
    return FakeQuantLinear.from_linear(linear, spec)


def run(layer: FakeQuantLinear, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 1):
    """Output and gradients, beside the oracle's."""
    torch.manual_seed(seed)
    layer = layer.to(dtype)
    x = (torch.randn(shape) * 3).to(dtype).requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    got = {"y": y.detach(), "dx": x.grad, "dw": layer.weight.grad}
    if layer.bias is not None:
        got["db"] = layer.bias.grad
    spec, k = layer.spec, shape[-1]
    block = layer.block_size if spec.block_size != 128 else None
    rows, rows_dy = x.reshape(-1, k), dy.reshape(-1, dy.shape[-1])
    want = linear(rows, layer.weight, layer.bias, rows_dy, spec.weight_bits, spec.act_bits, block)
    return got, {name: want[name].reshape(t.shape) for name, t in got.items()}


@pytest.mark.parametrize(("weight_bits", "act_bits"), FORMATS, ids=str)
def test_output_and_gradients_equal_the_oracle(weight_bits, act_bits):
    for shape, out in SHAPES:
        layer = make_layer(shape[-1], out, weight_bits, act_bits)
        got, want = run(layer, shape, torch.float64)
        for name in want:
            what = f"{name} of {shape}"
            torch.testing.assert_close(got[name], want[name], rtol=1e-7, atol=1e-7, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("weight_bits", "act_bits"), [(1, 1), (2, 2), (4, 4), ("ternary", "ternary"), (3, 16), (16, 4)]
)
def test_float32_stays_within_its_rounding(weight_bits, act_bits, seed):
    layer = make_layer(640, 16, weight_bits, act_bits, seed=seed)
    got, want = run(layer, (5, 640), torch.float32, seed=seed + 10)
    for name in want:
        error = (got[name].double() - want[name]).norm() / want[name].norm()
        assert error < 1e-5, name


@pytest.mark.parametrize("block_size", [16, 32, 64, 256])
@pytest.mark.parametrize("bits", [1, 4, "ternary"])
def test_explicit_block_sizes(bits, block_size):
    got, want = run(make_layer(512, 5, bits, bits, block_size=block_size), (3, 512), torch.float64)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("weight_bits", "act_bits"), FORMATS, ids=str)
def test_equals_the_composition_of_its_parts(weight_bits, act_bits):
    layer = make_layer(96, 11, weight_bits, act_bits).double()
    x = torch.randn(4, 96, dtype=torch.float64, requires_grad=True)
    w = layer.weight.detach().clone().requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, layer.weight), dy)
    parts = F.linear(fake_quantize(x, bits=act_bits, role="activation"), fake_quantize(w, bits=weight_bits), layer.bias)
    torch.testing.assert_close(y, parts, rtol=1e-10, atol=1e-10)
    for got, want in zip((dx, dw), torch.autograd.grad(parts, (x, w), dy), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_only_the_gradient_asked_for_is_made(frozen):
    layer = make_layer(64, 8, 4, 4)
    x = torch.randn(3, 64, requires_grad=frozen != "x")
    layer.weight.requires_grad_(frozen != "weight")
    layer(x).square().sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (layer.weight.grad is None) == (frozen == "weight")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_backward_keeps_codes_bits_and_steps_only(bits, autocast):
    tokens, k, out, saved = 32, 640, 24, []
    layer, x = make_layer(k, out, bits, bits), torch.randn(tokens, k, requires_grad=True)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        layer(x)
    assert {t.dtype for t in saved} == {torch.uint8, torch.float32}
    steps = [t for t in saved if t.dtype == torch.float32]
    assert sorted(tuple(t.shape) for t in steps) == [(out, 1), (tokens, 1)]
    assert sum(t.nbytes for t in saved) <= (tokens + out) * (k * (1 + 1 / 8) + 4)


def test_weight_only_keeps_the_activation_in_the_sixteen_bits_it_is_multiplied_in():
    layer, x, saved = make_layer(640, 24, 4, 16), torch.randn(32, 640, requires_grad=True), []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        layer(x)
    assert not any(t.dtype == torch.float32 and t.numel() > 32 for t in saved)
    assert sum(t.nbytes for t in saved) <= 32 * 640 * 2 + 24 * (640 * 9 / 8 + 4)


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(4, 4), (1, 1), (8, 8), (4, 16), (16, 4)], ids=str)
def test_bfloat16_autocast_is_close_to_float32(weight_bits, act_bits):
    layer = make_layer(640, 24, weight_bits, act_bits)
    x = torch.randn(16, 640).bfloat16().float().requires_grad_()  # autocast rounds it before it is quantised
    plain = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert ((y - layer(x)).norm() / layer(x).norm()) < 1e-2
    half = torch.autograd.grad(y.float().square().sum(), (x, layer.weight, layer.bias))
    for got, want in zip(half, plain, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() / want.norm() < 2e-2


def test_float16_autocast_does_not_overflow_where_the_product_of_codes_would():
    row = torch.randn(640)
    layer = make_layer(640, 4, 8, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(row.expand(4, -1))
    x = row.expand(2, -1).clone().requires_grad_()
    codes = (layer.quantized_weight().data.double() - 127.5).square().sum(-1)
    assert codes.min() > torch.finfo(torch.float16).max  # so the case is one that would
    with torch.autocast("cpu", torch.float16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=1e-2, atol=0)
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_zero_rows_give_the_bias_and_finite_gradients(bits, autocast):
    layer = make_layer(128, 6, bits, bits)
    with torch.no_grad():
        layer.weight[2] = 0
    x = torch.randn(3, 128)
    x[1] = 0
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.float().square().sum().backward()
    torch.testing.assert_close(y[1], layer.bias.to(y.dtype))
    torch.testing.assert_close(y[:, 2], layer.bias[2].to(y.dtype).expand(3))
    assert x.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_a_bad_number_in_a_token_is_never_hidden(bits):
    layer, x = make_layer(64, 6, bits, bits), torch.randn(3, 64)
    for bad in (math.nan, math.inf, -math.inf):
        x[1, 7] = bad
        y = layer(x)
        assert not y[1].isfinite().any()
        assert y[0].isfinite().all()
        assert y[2].isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_a_bad_number_in_a_weight_row_is_never_hidden(bits):
    layer = make_layer(64, 6, bits, bits)
    with torch.no_grad():
        layer.weight[2, 3] = math.nan
    assert not layer(torch.randn(3, 64))[:, 2].isfinite().any()


@pytest.mark.parametrize("bits", [1, 4, "ternary"])
def test_a_bad_upstream_gradient_is_never_hidden(bits):
    layer, x = make_layer(64, 6, bits, bits), torch.randn(3, 64, requires_grad=True)
    dy = torch.ones(3, 6)
    dy[0, 0] = math.nan
    layer(x).backward(dy)
    assert not x.grad[0].isfinite().all()
    assert not layer.weight.grad[0].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 48), (2, 0, 48), (0, 3, 48)], ids=str)
def test_an_empty_batch_works_forward_and_backward(shape):
    layer, x = make_layer(48, 6, 4, 4), torch.zeros(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (*shape[:-1], 6)
    assert x.grad.shape == shape
    assert layer.weight.grad.abs().max() == 0


def test_rows_are_independent():
    layer, x = make_layer(640, 24, 4, 4), torch.randn(7, 640)
    torch.testing.assert_close(torch.stack([layer(row) for row in x]), layer(x), rtol=1e-6, atol=1e-6)


def test_quantized_weight_is_what_the_forward_pass_multiplies():
    layer = make_layer(96, 11, 4, 16, bias=False).double()
    codes, _, step, offset = layer.quantized_weight()
    assert (codes.shape, step.shape, offset) == ((11, 96), (11, 1), None)
    eye = torch.eye(96, dtype=torch.float64)  # rows e_i, so the output is the weight, rotated back
    values = (codes.double() - 7.5) * step
    torch.testing.assert_close(layer(eye), (values @ rotation(96)).T, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="not quantised"):
        make_layer(96, 11, 16, 4).quantized_weight()


def test_bfloat16_weights_without_autocast():
    layer = make_layer(128, 8, 4, 4).bfloat16()
    x = torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == layer.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer.float()(x.float()), rtol=2e-2, atol=2e-2)


def test_prepare_and_from_linear_make_the_same_layer():
    torch.manual_seed(0)
    linear = nn.Linear(64, 8)
    x = torch.randn(3, 64)
    direct = FakeQuantLinear.from_linear(linear, QuantSpec())(x)
    assert torch.equal(prepare(linear, QuantSpec())(x), direct)
