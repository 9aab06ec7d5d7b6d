"""Recipes: which are active, and what they do to a model and its optimizer through the loop's interface."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from questlm import QuantSpec, prepare
from questlm.config import TrainConfig
from questlm.quant import quantized_layers
from questlm.training.optim import Optimizers, make_optimizer
from questlm.training.recipes import Cage, FadeIn, Moment, WeightDecay, active_recipes


def prepared(**quant: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))})
    return prepare(model, QuantSpec(**quant))


def moment(model: nn.Module, optimizer: Optimizers, done: float) -> Moment:
    return Moment(model, optimizer, done, lr=0.01)


def test_a_plain_run_has_no_recipe() -> None:
    assert active_recipes(TrainConfig(), prepared()) == []


def test_settings_ask_for_recipes_by_what_they_set() -> None:
    train = TrainConfig(cage=10, weight_decay_until=0.7)
    assert [type(recipe) for recipe in active_recipes(train, prepared(gradual=0.5))] == [FadeIn, WeightDecay, Cage]


def test_fading_in_sets_the_strength_of_every_layer() -> None:
    model = prepared(gradual=0.5)
    recipe = FadeIn()
    optimizer = make_optimizer(model, TrainConfig())
    recipe.before_step(moment(model, optimizer, 0.0))
    strengths = [float(layer.strength) for layer in quantized_layers(model).values() if layer.strength is not None]
    assert strengths == [0.0, 0.0]
    recipe.before_step(moment(model, optimizer, 0.5))
    strengths = [float(layer.strength) for layer in quantized_layers(model).values() if layer.strength is not None]
    assert strengths == [1.0, 1.0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_ends_for_weights_and_not_for_what_quantisers_learn(name: str) -> None:
    model = prepared(method="pact")
    train = TrainConfig(optimizer=name, weight_decay=0.2, quantizer_weight_decay=0.3, weight_decay_until=0.6)
    optimizer = make_optimizer(model, train)
    (recipe,) = active_recipes(train, model)

    def decays() -> dict[str, float]:
        return {group["name"]: group["weight_decay"] for group in optimizer.groups}

    recipe.before_step(moment(model, optimizer, 0.59))
    assert decays() == {"matrices": 0.2, "quantizers": 0.3}
    recipe.before_step(moment(model, optimizer, 0.6))
    assert decays() == {"matrices": 0.0, "quantizers": 0.3}


def test_cage_pulls_after_a_step_by_the_learning_rate_times_its_strength() -> None:
    model = prepared(weight_bits=2)
    layer = next(iter(quantized_layers(model).values()))
    before, rounded = layer.weight.detach().clone(), layer.rounded_weight()
    Cage(10).after_step(moment(model, make_optimizer(model, TrainConfig()), 0.9))
    torch.testing.assert_close(layer.weight.detach(), before - 0.01 * 5 * (before - rounded))
