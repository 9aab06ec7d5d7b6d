"""CAGE: the pull towards the grid, its strength, and that it settles with every method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from questlm import QuantSpec, prepare
from questlm.config import ModelConfig, TrainConfig
from questlm.models import Llama
from questlm.quant import METHODS, fake_quantize, quantized_layers
from questlm.training.optim import make_optimizer
from questlm.training.recipes import Cage, Moment
from questlm.training.recipes.cage import pull_to_grid


@pytest.mark.parametrize(("done", "expected"), [(0, 0), (0.8, 0), (0.85, 2.5), (0.9, 5), (1, 10)])
def test_it_is_silent_for_four_fifths_and_then_rises(done, expected):
    assert Cage(10).strength_at(done) == pytest.approx(expected)


def test_it_pulls_weights_by_the_rate_towards_their_rounded_values():
    torch.manual_seed(0)
    model = prepare(nn.Sequential(nn.Linear(64, 8, bias=False)), QuantSpec(weight_bits=2))
    w = model[0].weight.detach().clone()
    pull_to_grid(model, 0.25)
    rounded = fake_quantize(w, bits=2, rotate_back=True)
    torch.testing.assert_close(model[0].weight.detach(), w - 0.25 * (w - rounded))


def test_the_rate_is_that_of_the_optimizer_that_moves_the_weight():
    torch.manual_seed(0)
    shape = ModelConfig(layers=1, hidden=32, heads=1, vocab_size=64)
    model = prepare(Llama(shape).initialize(seed=0), QuantSpec(weight_bits=2))
    train = TrainConfig(optimizer="muon", lr=4e-3, muon_lr=1e-3)
    layer = quantized_layers(model)["layers.0.mlp.up"]
    before, rounded = layer.weight.detach().clone(), layer.rounded_weight()
    Cage(10).after_step(Moment(model, make_optimizer(model, train), done=1.0, lr=4e-3))
    torch.testing.assert_close(layer.weight.detach(), before - 1e-3 * 10 * (before - rounded))


# BitNet's scale is the mean magnitude with zeros counted in, so rounding again gives less, and weights shrink.
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("bitnet", "extra-rmsnorm")])
def test_it_goes_with_any_method_and_settles(method):
    torch.manual_seed(0)
    widths = {"weight_bits": METHODS[method].weight.bits[0], "act_bits": METHODS[method].act.bits[0]}
    model = nn.ModuleDict({"up": nn.Linear(64, 64, bias=False)})
    prepare(model, QuantSpec(method=method, **widths))
    model["up"](torch.randn(4, 64))
    for name, parameter in model.named_parameters():
        if name.endswith("output_scale"):
            parameter.data.fill_(2.0)
    before = model["up"].weight.abs().mean()
    for _ in range(200):
        pull_to_grid(model, 0.05)
    layer = quantized_layers(model)["up"]
    assert 0.5 < layer.weight.abs().mean() / before < 2
    assert (layer.weight - layer.rounded_weight()).norm() < 0.1 * layer.weight.norm()
