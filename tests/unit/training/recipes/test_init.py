"""Recipes: which are active, and what they do to a model and its optimizer through the loop's interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from questlm import QuantSpec, prepare
from questlm.config import RunConfig, TrainConfig
from questlm.errors import ConfigError
from questlm.quant import quantized_layers
from questlm.training import train
from questlm.training.optim import Optimizers, make_optimizer
from questlm.training.recipes import RECIPES, Beginning, Cage, FadeIn, Moment, Recipe, WeightDecay, active_recipes


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


class _Mine(Recipe):
    adds_loss = True

    def __init__(self, inputs: Any, by_token: bool = False) -> None:
        self.inputs, self.by_token = inputs, by_token

    def begin(self, beginning: Beginning) -> Any:
        return self.inputs

    def loss(self, inputs: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        term = logits.float().square().mean(dim=-1)
        return term if self.by_token else term.mean()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (_Mine(None), r"recipe _Mine returned None from `begin`; it is to return the SHA-256"),
        (_Mine({"setting": 3}), r"recipe _Mine returned \{'setting': 3\} from `begin`"),
        (_Mine({}, by_token=True), r"recipe _Mine returned a loss of shape \(4, 32\); it is to return a scalar"),
    ],
)
def test_a_recipe_that_returns_something_else_is_refused_before_anything_is_written(
    recipe: Recipe, message: str, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "mine", lambda: recipe)
    config = tiny.model_copy(update={"train": tiny.train.model_copy(update={"recipes": {"mine": {}}})})
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_recipes_with_one_key_are_refused(tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later would replace the hash of the first, which could then change unseen."""
    for name, digest in (("one", "aa"), ("two", "bb")):
        monkeypatch.setitem(RECIPES, name, lambda digest=digest: _Mine({"file": digest}))
    config = tiny.model_copy(update={"train": tiny.train.model_copy(update={"recipes": {"one": {}, "two": {}}})})
    with pytest.raises(ConfigError, match=r"_Mine returned the key 'file' from `begin`, and so did a recipe before it"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


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

    recorded: list[float] = []

    def come(done: float) -> None:
        recipe.before_step(Moment(model, optimizer, done, lr=0.01, record_again=lambda: recorded.append(done)))

    come(0.59)
    assert decays() == {"matrices": 0.2, "quantizers": 0.3}
    come(0.6)
    come(0.7)
    assert decays() == {"matrices": 0.0, "quantizers": 0.3}
    assert recorded == [0.6]


def test_cage_pulls_after_a_step_by_the_learning_rate_times_its_strength() -> None:
    model = prepared(weight_bits=2)
    layer = next(iter(quantized_layers(model).values()))
    before, rounded = layer.weight.detach().clone(), layer.rounded_weight()
    Cage(10).after_step(moment(model, make_optimizer(model, TrainConfig()), 0.9))
    torch.testing.assert_close(layer.weight.detach(), before - 0.01 * 5 * (before - rounded))
