"""A training that begins with more bits, and ends with the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import questlm
from questlm.config import QuantSpec, RunConfig, TrainConfig
from questlm.errors import ConfigError
from questlm.quant import quantized_layers
from questlm.quant.layers.mode import Mode
from questlm.training.optim import make_optimizer
from questlm.training.recipes import Beginning, Moment, MoreBitsFirst, active_recipes

Settings = Callable[..., RunConfig]


def prepared(**quant: object) -> nn.Module:
    torch.manual_seed(0)
    return questlm.prepare(nn.ModuleDict({"layers": nn.Linear(64, 8, bias=False)}), QuantSpec(**quant))


def begun(model: nn.Module, bits: int, share: float = 0.5) -> MoreBitsFirst:
    recipe = MoreBitsFirst(bits, share)
    recipe.begin(Beginning(model, torch.device("cpu"), 300, None, lambda folder: pytest.fail(folder)))
    return recipe


def play(recipe: MoreBitsFirst, model: nn.Module, *shares: float) -> list[float]:
    """The shares at which steps were to be recorded again."""
    optimizer, changed = make_optimizer(model, TrainConfig()), []
    for done in shares:
        recipe.before_step(Moment(model, optimizer, done, 0.01, lambda done=done: changed.append(done)))
    return changed


def levels(model: nn.Module) -> list[int | None]:
    (layer,) = quantized_layers(model).values()
    quantizers = (layer.weight_quantizer, layer.act_quantizer)
    return [None if quantizer is None else quantizer.grid.levels for quantizer in quantizers]


@pytest.mark.parametrize("method", ["quest", "quest-noht", "ste", "quarot"])
def test_it_computes_as_a_model_of_more_bits_and_then_as_itself(method: str) -> None:
    model, more = prepared(method=method, weight_bits=2, act_bits=2), prepared(method=method, weight_bits=4, act_bits=4)
    more.load_state_dict(model.state_dict())
    x = torch.randn(5, 64)
    own = model["layers"](x)
    recipe = begun(model, 4)
    assert play(recipe, model, 0.0, 0.49) == [0.0]
    y, expected = model["layers"](x), more["layers"](x)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(model["layers"].weight.grad, more["layers"].weight.grad)
    assert play(recipe, model, 0.5, 0.9) == [0.5]
    assert torch.equal(model["layers"](x), own)


def test_without_quantising_first() -> None:
    model = prepared(method="lsq", weight_bits=1, act_bits=1)
    recipe, (layer,) = begun(model, 16, 0.25), quantized_layers(model).values()
    assert play(recipe, model, 0.0, 0.2) == [0.0]
    assert layer.mode is Mode.DENSE
    assert play(recipe, model, 0.25, 0.5) == [0.25]
    assert layer.mode is Mode.QUANTIZED


def test_what_has_as_many_bits_or_16_stays_as_it_is() -> None:
    for bits, wanted in (((1, 16), [16, None]), ((1, 8), [16, 256]), ((4, 1), [16, 16])):
        model = prepared(weight_bits=bits[0], act_bits=bits[1])
        play(begun(model, 4), model, 0.0)
        assert levels(model) == wanted


@pytest.mark.parametrize(
    ("quant", "bits", "message"),
    [
        ({"weight_bits": 4, "act_bits": 4}, 4, "train.first_bits is 4, and nothing in this model has fewer bits"),
        ({"method": "lsq", "weight_bits": 2, "act_bits": 2}, 4, r"learn or have rounded steps.*set it to 16"),
        ({"weight_bits": 1, "act_bits": 16, "steps": "fp16"}, 4, r"learn or have rounded steps"),
        ({"weight_bits": 1, "act_bits": 1, "gradual": 0.5}, 16, "train.first_bits and quant.gradual both decide"),
    ],
)
def test_what_it_cannot_change_is_refused(quant: dict[str, object], bits: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        begun(prepared(**quant), bits)


def test_it_is_asked_for_by_a_setting() -> None:
    assert active_recipes(TrainConfig(), prepared()) == []
    (recipe,) = active_recipes(TrainConfig(first_bits=4), prepared())
    assert isinstance(recipe, MoreBitsFirst)
    assert (recipe.bits, recipe.share) == (4, 0.5)


@pytest.mark.parametrize("bits", [4, 16])
def test_a_run_ends_with_its_own_bits(bits: int, tiny_settings: Settings, tmp_path: Path) -> None:
    settings = tiny_settings(quant={"weight_bits": 1, "act_bits": 1}, train={"first_bits": bits})
    record = questlm.train(settings, tmp_path / "run")
    questlm.pack(tmp_path / "run", tmp_path / "packed")
    assert questlm.evaluate(tmp_path / "packed").loss == pytest.approx(record.final["loss"], abs=1e-4)
