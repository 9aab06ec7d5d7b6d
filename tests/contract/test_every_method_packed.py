"""What trains is what ships, for every method and format: logits of the packed model, after a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import questlm
from helpers.packed_models import IDS, SHAPE, same_logits, specs, trained
from questlm.artifact.dense import dense_state_dict
from questlm.artifact.read import load_artifact
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.export.hugging_face import to_hugging_face
from questlm.export.pack import pack
from questlm.models import KVCache, Llama
from questlm.quant import METHODS, quantized_layers

FLIPPED = 2e-2  # of the largest logit


CPU_INFO = Path("/proc/cpuinfo")
AMX = CPU_INFO.exists() and "amx_bf16" in CPU_INFO.read_text()
"""Where torch adds products of bfloat16 in tiles, the last bit of a logit was seen to differ."""


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether numbers in bfloat16 are equal but for their last bits."""
    return bool((found - expected).abs().max() <= 2**-7 * expected.abs().max())


@pytest.fixture(scope="module", params=specs(), ids=lambda spec: f"{spec.label}")
def both(request, tmp_path_factory):
    """A spec, a model trained with it for a step, and the folder of its packed form."""
    model, path = trained(request.param), tmp_path_factory.mktemp("packed") / "a"
    pack(model, path)
    return request.param, model, path


def test_the_packed_model_is_the_trained_one(both):
    spec, model, path = both
    with torch.no_grad():
        expected = model(IDS)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(IDS)
    for weights in ("auto", "packed"):
        assert same_logits(questlm.load(path, weights=weights).logits(IDS), expected, spec)
        half = questlm.load(path, dtype=torch.bfloat16, weights=weights)
        assert torch.equal(half.logits(IDS), rounded) or (AMX and near(half.logits(IDS), rounded))


def test_a_native_step_is_that_of_the_layers(both):
    """Up to the order of float32 sums, where an input on the edge of two codes may get the other code."""
    spec, _, path = both
    model, ids, counts = questlm.load(path), IDS.repeat(2, 1), torch.tensor([9, 4, 1, 7])
    if spec.embeddings in ("int2", "int3", "int4", "int7"):
        assert model.not_native == "embed: its rows are packed codes, which only torch looks up"
        return
    assert model.not_native is None
    found = []
    with torch.inference_mode():
        for step in (model._next_logits, model._model.next_logits):
            cache = KVCache(model.config, 4, 10, torch.float32, "cpu")
            found.append(torch.stack([step(ids, cache, counts), step(ids[:, :1], cache, None)]))
    assert (found[0] - found[1]).abs().max() <= FLIPPED * found[1].abs().max()


def test_dense_weights_are_what_the_layers_multiply_by(both, tmp_path):
    spec, model, path = both
    artifact = load_artifact(path)
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
