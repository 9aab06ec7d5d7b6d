"""Centring and the diagonal against plain formulas in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.oracle import linear, quantize_rows, rotation
from questlm import QuantSpec, pack, prepare
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.models import Llama
from questlm.quant import METHODS, FakeQuantLinear
from questlm.quant.layer_formats import layer_formats
from questlm.quant.layers.corrections import InputMean, diagonal_product


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch):
    def register(**parts: bool) -> str:
        monkeypatch.setitem(METHODS, "corrected", replace(METHODS["quest"], **parts))
        return "corrected"

    return register


def make_layer(method: str, k: int, out: int, bits: int) -> FakeQuantLinear:
    torch.manual_seed(0)
    spec = QuantSpec(method=method, weight_bits=bits, act_bits=bits)
    return FakeQuantLinear.from_linear(nn.Linear(k, out), spec).double()


def inputs(k: int, out: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, k, dtype=torch.float64) + torch.randn(k, dtype=torch.float64), torch.randn(6, out).double()


def test_the_mean_is_that_of_all_batches_and_later_a_running_one():
    average, batches = InputMean(3), [torch.randn(4, 3) for _ in range(5)]
    for batch in batches:
        average(batch)
    torch.testing.assert_close(average.mean, torch.stack(batches).mean((0, 1)))
    average.batches.fill_(10_000)
    before = average.mean.clone()
    torch.testing.assert_close(average(batches[0]), before + 0.01 * (batches[0].mean(0) - before))
    kept = average.mean.clone()
    assert torch.equal(average.eval()(batches[1]), kept)


def test_the_mean_is_not_taken_by_several_processes(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="in one process only"):
        InputMean(3)(torch.zeros(1, 3))


@pytest.mark.parametrize(("k", "out"), [(6, 6), (4, 11), (11, 4), (8, 4), (3, 6)])
def test_the_diagonal_connects_what_is_equal_modulo_the_shorter_side(k, out):
    x, diagonal = torch.randn(5, k, dtype=torch.float64), torch.randn(max(k, out), dtype=torch.float64)
    matrix = torch.zeros(out, k, dtype=torch.float64)
    for index in range(max(k, out)):
        matrix[index % out, index % k] = diagonal[index]
    torch.testing.assert_close(diagonal_product(x, diagonal, out), x @ matrix.T)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_centred_layer_and_its_gradients_equal_the_formula(method, bits):
    layer, (x, dy) = make_layer(method(centers=True), 32, 12, bits), inputs(32, 12)
    x.requires_grad_()
    y = layer(x)
    y.backward(dy)
    mean, h = x.detach().mean(0), rotation(32)
    want = linear(x - mean, layer.weight, layer.bias, dy, bits, bits)
    w_q, w_mask = quantize_rows(layer.weight, bits)
    torch.testing.assert_close(y, want["y"] + (mean @ h) @ w_q.T)
    torch.testing.assert_close(x.grad, want["dx"])
    constant = w_mask * torch.outer(dy.sum(0), mean @ h)
    torch.testing.assert_close(layer.weight.grad, want["dw"] + constant @ h.T)


@pytest.mark.parametrize(("k", "out"), [(32, 32), (32, 80), (96, 32)])
def test_a_layer_with_a_diagonal_and_its_gradients_equal_the_formula(method, k, out):
    layer, (x, dy) = make_layer(method(diagonal=True), k, out, 2), inputs(k, out)
    plain = make_layer("quest", k, out, 2)
    assert torch.equal(layer(x), plain(x))  # it starts at 0
    layer.diagonal.data.normal_()
    x.requires_grad_()
    layer(x).backward(dy)
    want = linear(x, layer.weight, layer.bias, dy, 2, 2)
    matrix = torch.zeros(out, k, dtype=torch.float64)
    for index in range(max(k, out)):
        matrix[index % out, index % k] = layer.diagonal.data[index]
    torch.testing.assert_close(layer(x), want["y"] + x @ matrix.T)
    torch.testing.assert_close(x.grad, want["dx"] + dy @ matrix)
    by_entry = dy.T @ x.detach()
    wanted = torch.stack([by_entry[index % out, index % k] for index in range(max(k, out))])
    torch.testing.assert_close(layer.diagonal.grad, wanted)


@pytest.mark.parametrize("parts", [{"centers": True}, {"diagonal": True}, {"unpackable": "something"}])
def test_what_the_packed_format_does_not_hold_is_not_packed(method, parts, tmp_path):
    shape = ModelConfig(layers=1, hidden=32, heads=1, vocab_size=64)
    spec = QuantSpec(method=method(**parts), weight_bits=1, act_bits=1)
    model = prepare(Llama(shape).initialize(seed=0), spec)
    with pytest.raises(ConfigError, match=r"the packed format does not hold .*'corrected' has"):
        pack(model, tmp_path / "packed")
    with pytest.raises(ConfigError, match="does not hold"):
        layer_formats(spec, {"mlp.up": (64, 32)})


def test_a_mean_is_not_faded_in(method):
    with pytest.raises(ConfigError, match="cannot be faded in"):
        FakeQuantLinear.from_linear(nn.Linear(32, 32), QuantSpec(method=method(centers=True), gradual=0.5))
