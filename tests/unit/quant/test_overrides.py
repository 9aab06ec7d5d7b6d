"""Settings for single layers, and what prepare makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from questlm import Llama, QuantSpec, prepare
from questlm.config import ModelConfig, RunConfig, load_config, to_yaml
from questlm.errors import ConfigError
from questlm.quant import learned_parameters, quantized_layers

SHAPE = ModelConfig(layers=2, hidden=32, heads=2, mlp_hidden=64, vocab_size=50)


def labels(**settings) -> dict[str, str]:
    model = prepare(Llama(SHAPE).initialize(0), QuantSpec(**settings))
    return {name: layer.spec.label for name, layer in quantized_layers(model).items()}


def test_overrides_name_layers_by_their_end_or_whole():
    found = labels(overrides={"lm_head": 8, "mlp.down": {"act_bits": 8}, "layers.0.attention.*": 2})
    assert found["lm_head"] == "quest-w8a8"
    assert found["layers.0.mlp.down"] == found["layers.1.mlp.down"] == "quest-w4a8"
    assert found["layers.0.attention.q"] == "quest-w2a2"
    assert found["layers.1.attention.q"] == "quest-w4a4"


@pytest.mark.parametrize("order", [1, -1])
def test_the_more_particular_pattern_wins_whatever_the_order(order):
    given = [("*", 16), ("mlp.*", {"weight_bits": 8, "act_bits": 16}), ("mlp.down", {"weight_bits": 2})][::order]
    found = labels(overrides=dict(given))
    assert found == {
        f"layers.{i}.mlp.{name}": f"quest-w{2 if name == 'down' else 8}a16"
        for i in (0, 1)
        for name in ("gate", "up", "down")
    }


def test_a_method_and_a_format_may_differ_by_layer():
    found = labels(overrides={"mlp.up": {"method": "lsq"}, "mlp.gate": {"format": "ternary"}})
    assert found["layers.0.mlp.up"] == "lsq-w4a4"
    assert found["layers.0.mlp.gate"] == "quest-wtat"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mlp.dwn": 8}, "'mlp.dwn' names no linear layer.*mlp.down"),
        ({"mlp.down": 9}, "'mlp.down' is given 9; it takes bits"),
        ({"mlp.down:16": None}, "with a space after each colon"),
        ({"mlp.down": {"bits": 8}}, "unknown setting 'bits'"),
        ({"mlp.down": {"format": "fp4", "weight_bits": 3}}, "layer 'layers.0.mlp.down': the format fp4 quantises to 4"),
        ({"mlp.down": {"method": "adabin"}}, "adabin quantises weights to 1 bits, not 4"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        labels(overrides=overrides)


def test_a_tied_head_is_refused():
    model = Llama(SHAPE.model_copy(update={"tied_head": True})).initialize(0)
    with pytest.raises(ConfigError, match="shares the embedding's weight"):
        prepare(model, QuantSpec(overrides={"lm_head": 8}))


def test_they_survive_yaml_and_are_hashable(tmp_path):
    config = load_config("nano", overrides=["quant.overrides={lm_head: 8, mlp.down: {act_bits: 8}}"])
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    again = load_config(file=tmp_path / "c.yaml")
    assert again == config
    assert hash(again.quant) == hash(config.quant)
    assert RunConfig(**config.model_dump(mode="json")) == config


def test_learned_parameters_are_those_of_quantisers():
    model = prepare(nn.Sequential(nn.Linear(32, 8)), QuantSpec(method="lsq+"))
    assert set(learned_parameters(model)) == {
        "0.weight_quantizer.scale",
        "0.act_quantizer.scale",
        "0.act_quantizer.shift",
    }


def test_a_prepared_model_draws_no_weights_over_what_its_quantisers_learn():
    model = prepare(Llama(SHAPE).initialize(0), QuantSpec(method="lsq"))
    with pytest.raises(ConfigError, match="draw the weights first"):
        model.initialize(0)


@pytest.mark.parametrize("form", ["int-2:4", "bf16-2:4"])
def test_rows_that_sparsity_does_not_divide_are_refused_at_once(form):
    with pytest.raises(ConfigError, match="multiple of"):
        prepare(nn.Sequential(nn.Linear(18, 8)), QuantSpec(method="quest-noht", format=form, act_bits=16))


def test_models_with_learned_steps_can_be_pickled_by_others():
    import pickle

    for method in ("lsq", "lsq-row", "lsq+", "pact", "seq"):
        model = prepare(nn.Sequential(nn.Linear(32, 8)), QuantSpec(method=method, weight_bits=2, act_bits=2))
        model(torch.randn(4, 32))
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(torch.ones(1, 32)), model(torch.ones(1, 32)))
