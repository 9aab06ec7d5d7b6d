"""What trains is what ships, for every method and format: logits of the packed model, bit for bit, after a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError
from questlm.export.dense import dense_state_dict, to_hugging_face
from questlm.export.load import load_artifact
from questlm.export.pack import pack
from questlm.models import Llama
from questlm.quant import METHODS, quantized_layers
from questlm.quant.methods import FORMAT_BITS

SHAPE = ModelConfig(layers=2, hidden=48, heads=2, kv_heads=1, mlp_hidden=64, vocab_size=61)
IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
OVERRIDES = {"lm_head": 8, "mlp.down": {"act_bits": 8}, "layers.1.attention.*": {"method": "lsq"}}


def specs() -> list[QuantSpec]:
    found = []
    for name, method in METHODS.items():
        ends = {method.weight.bits[0], method.weight.bits[-1], *[b for b in (1, 8) if b in method.weight.bits]}
        for bits in sorted(ends, key=str):
            act = bits if bits in method.act.bits else method.act.bits[0]
            found += [QuantSpec(method=name, weight_bits=bits, act_bits=a) for a in (act, 16)]
        found.append(QuantSpec(method=name, weight_bits=16, act_bits=method.act.bits[0]))
        for form in [form for form in method.formats if form not in ("int", "ternary")]:
            found += [
                QuantSpec(method=name, format=form, weight_bits=bits, act_bits=4, act_format="int")
                for bits in FORMAT_BITS[form]
            ]
    found.append(QuantSpec(format="lloydmax", weight_bits=3, act_bits=2))
    found.append(QuantSpec(overrides=OVERRIDES))
    return [spec.model_copy(update={"embeddings": "bf16"}) for spec in found]


def trained(spec: QuantSpec) -> Llama:
    model = questlm.prepare(Llama(SHAPE).initialize(0), spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten()).backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: f"{spec.label}")
def test_the_packed_model_is_the_trained_one(tmp_path, spec):
    model = trained(spec)
    pack(model, tmp_path / "a")
    packed = questlm.load(tmp_path / "a")
    half = questlm.load(tmp_path / "a", dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(packed.logits(IDS), model(IDS))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(half.logits(IDS), model(IDS))


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: f"{spec.label}")
def test_dense_weights_are_what_the_layers_multiply_by(tmp_path, spec):
    model = trained(spec)
    pack(model, tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    weights = dense_state_dict(artifact)
    for name, layer in quantized_layers(model).items():
        if not METHODS[layer.spec.method].branches:
            torch.testing.assert_close(weights[f"{name}.weight"], layer.rounded_weight(), rtol=1e-5, atol=1e-7)
    if METHODS[spec.method].input_norm:
        with pytest.raises(ConfigError, match="has a norm before it"):
            to_hugging_face(artifact, tmp_path / "hf")


def test_weights_of_zeros_ship_too(tmp_path):
    model = Llama(SHAPE).initialize(0)
    torch.nn.init.zeros_(model.layers[0].mlp.down.weight)
    questlm.prepare(model, QuantSpec(method="lsq", embeddings="bf16"))
    model(IDS)
    pack(model, tmp_path / "a")
    assert torch.equal(questlm.load(tmp_path / "a").logits(IDS), model(IDS))


def test_a_model_that_has_seen_nothing_has_no_steps_to_ship(tmp_path):
    model = questlm.prepare(Llama(SHAPE).initialize(0), QuantSpec(method="lsq", embeddings="bf16"))
    with pytest.raises(ConfigError, match="has seen no data yet"):
        pack(model, tmp_path / "a")


def test_the_method_of_most_layers_is_named(tmp_path):
    model = questlm.prepare(
        Llama(SHAPE).initialize(0), QuantSpec(embeddings="bf16", overrides={"layers.0.attention.q": 8})
    )
    pack(model, tmp_path / "a")
    assert load_artifact(tmp_path / "a").config.quantization_config.weight_bits == 4
