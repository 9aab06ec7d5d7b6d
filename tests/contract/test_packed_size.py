"""What the planner counts is what `quest pack` writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.packed_models import specs
from questlm import Llama, QuantSpec, prepare
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.export.pack import _describe, _tensors
from questlm.quant import METHODS, quantized_layers
from questlm.quant.layer_formats import layer_formats
from questlm.scaling.size import PackedSizes, packed_bytes

SHAPE = ModelConfig(layers=3, hidden=80, heads=4, kv_heads=2, head_dim=24, mlp_hidden=112, vocab_size=96)
WIDTHS = [
    QuantSpec(method=name, weight_bits=weight, act_bits=act)
    for name, method in METHODS.items()
    for weight in (*method.weight.bits, 16)
    for act in {16, weight if weight in method.act.bits else method.act.bits[0]}
]
SPECS = list(dict.fromkeys([*specs(), *WIDTHS, QuantSpec(embeddings="int8"), QuantSpec(embeddings="float")]))


def made(spec: QuantSpec, shape: ModelConfig = SHAPE) -> Llama:
    model = prepare(Llama(shape).initialize(0), spec)
    model(torch.zeros(1, 4, dtype=torch.int64))  # by which quantisers that learn take their first values
    return model


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.label}-{spec.embeddings}")
def test_the_count_is_that_of_the_tensors_that_are_written(spec: QuantSpec) -> None:
    model = made(spec)
    written = _tensors(model, _describe(model, {}, None, None))
    assert packed_bytes(SHAPE, spec) == sum(tensor.numel() * tensor.element_size() for tensor in written.values())
    linears = {name: (m.out_features, m.in_features) for name, m in model.named_modules() if hasattr(m, "out_features")}
    assert layer_formats(spec, linears) == {name: m.packed_format() for name, m in quantized_layers(model).items()}


@pytest.mark.parametrize("spec", [QuantSpec(), QuantSpec(weight_bits=16, act_bits=16, embeddings="int8")])
def test_a_tied_head_is_counted_once(spec: QuantSpec) -> None:
    tied = SHAPE.model_copy(update={"tied_head": True})
    model = made(spec, tied)
    written = _tensors(model, _describe(model, {}, None, None))
    assert packed_bytes(tied, spec) == sum(tensor.numel() * tensor.element_size() for tensor in written.values())


@pytest.mark.parametrize("own", ["qkv_bias", "qk_norm"])
def test_biases_and_norms_of_heads_are_counted(own: str) -> None:
    shape = SHAPE.model_copy(update={own: True})
    model = made(QuantSpec(), shape)
    written = _tensors(model, _describe(model, {}, None, None))
    assert packed_bytes(shape, QuantSpec()) == sum(
        tensor.numel() * tensor.element_size() for tensor in written.values()
    )
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("spec", [QuantSpec(), QuantSpec(method="pquant", weight_bits=1, act_bits=8)])
def test_many_models_are_counted_as_each_alone(spec: QuantSpec) -> None:
    sizes = PackedSizes(spec)
    for layers, hidden in ((1, 80), (7, 80), (2, 160), (3, 80)):
        model = SHAPE.model_copy(update={"layers": layers, "hidden": hidden})
        assert sizes.of(model) == packed_bytes(model, spec)


def test_a_method_that_says_nothing_of_what_it_stores_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [spec for spec in WIDTHS if spec.method in ("quest", "lsq+", "adabin", "pquant", "seq")]
    expected = [packed_bytes(SHAPE, spec) for spec in specs]
    for name, method in list(METHODS.items()):
        silent = replace(method, weight=replace(method.weight, stored=None), act=replace(method.act, stored=None))
        monkeypatch.setitem(METHODS, name, silent)
    assert [packed_bytes(SHAPE, spec) for spec in specs] == expected


def test_what_cannot_be_prepared_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        packed_bytes(ModelConfig(), QuantSpec())
    with pytest.raises(ConfigError, match="no method 'qest'"):
        packed_bytes(SHAPE, QuantSpec(method="qest"))
    with pytest.raises(ConfigError, match="names no linear layer"):
        packed_bytes(SHAPE, QuantSpec(overrides={"mlp.dwn": 8}))
