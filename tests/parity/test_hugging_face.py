"""Our Llama is transformers' LlamaForCausalLM under other names: logits, gradients, quantised layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from questlm import Llama, QuantSpec, prepare
from questlm.config import ModelConfig
from questlm.config.hugging_face import hugging_face_config, hugging_face_family, model_config_from_hugging_face
from questlm.errors import ConfigError
from questlm.models import from_hugging_face, to_hugging_face
from questlm.quant import quantized_layers

transformers = pytest.importorskip("transformers")

BASE = {"layers": 2, "hidden": 64, "heads": 4, "mlp_hidden": 96, "vocab_size": 50}
# Seventeen tokens and heads of sixteen: with these some frequencies are kept, some divided and some blended.
LLAMA3 = {"kind": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 64}
SHAPES = {
    "multi-head": {},
    "grouped-query": {"kv_heads": 2},
    "multi-query": {"kv_heads": 1},
    "tied": {"tied_head": True},
    "head-dim": {"head_dim": 32, "kv_heads": 2},
    "odd-constants": {"rope_theta": 500.0, "norm_eps": 1e-2},
    "default-mlp": {"mlp_hidden": None},
    "qwen2": {"qkv_bias": True, "kv_heads": 2},
    "qwen3": {"qk_norm": True, "head_dim": 32, "kv_heads": 2},
    "rope-linear": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "rope-llama3": {"rope_scaling": LLAMA3 | {"factor": 8.0}, "kv_heads": 2},
    "rope-llama3-tied": {"rope_scaling": LLAMA3 | {"factor": 32.0}, "tied_head": True, "rope_theta": 100.0},
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def config(request) -> ModelConfig:
    return ModelConfig(**BASE | request.param)


def theirs(config: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    name = hugging_face_family(config).capitalize()
    settings = getattr(transformers, f"{name}Config")(**hugging_face_config(config), attn_implementation="eager")
    model = getattr(transformers, f"{name}ForCausalLM")(settings)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough for attention to be far from uniform
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def ours(config: ModelConfig) -> Llama:
    model = Llama(config).initialize(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.15)
    return model


def ids() -> torch.Tensor:
    return torch.randint(0, 50, (3, 17), generator=torch.Generator().manual_seed(3))


def gradients(model: nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_their_weights_in_our_model_give_their_logits(config):
    reference, model = theirs(config), Llama(config)
    model.load_state_dict(from_hugging_face(reference.state_dict()))
    expected = reference(ids()).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(ids()), expected, rtol=1e-5, atol=1e-5)


def test_our_weights_in_their_model_give_our_logits(config):
    model, reference = ours(config), theirs(config)
    reference.load_state_dict(to_hugging_face(model.state_dict()))
    torch.testing.assert_close(reference(ids()).logits, model(ids()), rtol=1e-5, atol=1e-5)


def test_gradients_are_equal(config):
    reference, model = theirs(config), Llama(config)
    model.load_state_dict(from_hugging_face(reference.state_dict()))
    got = gradients(model, model(ids()))
    want = from_hugging_face(gradients(reference, reference(ids()).logits))
    assert got.keys() | {"lm_head.weight"} == want.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_shape_goes_there_and_back(config):
    again = model_config_from_hugging_face(theirs(config).config.to_dict())
    same = {"kv_heads": again.kv_heads, "head_dim": again.head_dim, "mlp_hidden": again.mlp_hidden}
    assert again == config.model_copy(update=same)
    assert (again.key_value_heads, again.head_width, again.mlp_width) == (
        config.key_value_heads,
        config.head_width,
        config.mlp_width,
    )


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_scaled_positions_change_what_the_model_computes(kind):
    scaling = {"kind": "linear", "factor": 4.0} if kind == "linear" else LLAMA3 | {"factor": 8.0}
    plain, scaled = ModelConfig(**BASE), ModelConfig(**BASE, rope_scaling=scaling)
    model, other = ours(plain), Llama(scaled)
    other.load_state_dict(model.state_dict())
    difference = (model(ids()) - other(ids())).abs().max()
    assert difference > 1e-2


@pytest.mark.parametrize("fields", [{}, {"rope_type": "default"}, {"type": "default", "rope_theta": 500.0}])
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_old_and_new_spellings_of_rotary_settings(name, fields):
    content = hugging_face_config(ModelConfig(**BASE)) | {"model_type": "llama", name: fields}
    assert model_config_from_hugging_face(content).rope_theta == fields.get("rope_theta", 10_000.0)
    assert model_config_from_hugging_face(content).rope_scaling is None


def test_a_mistral_without_a_sliding_window_is_a_llama():
    torch.manual_seed(0)
    settings = hugging_face_config(ModelConfig(**BASE, kv_heads=2))
    names = {name: value for name, value in settings.items() if not name.endswith("_bias")}
    reference = transformers.MistralForCausalLM(transformers.MistralConfig(**names, sliding_window=None)).eval()
    model = Llama(model_config_from_hugging_face(reference.config.to_dict()))
    model.load_state_dict(from_hugging_face(reference.state_dict()))
    torch.testing.assert_close(model(ids()), reference(ids()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; it must be one of llama, mistral, qwen2, qwen3"),
        (
            {"model_type": "gemma"},
            r"'gemma' is not supported \(its embedding is scaled, its norms multiply by 1 \+ gain",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
            "sliding_window = 8 is not supported",
        ),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias = True is not supported"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "mistral"}, "sliding_window = 4096 is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported; in a plain Llama it is False"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; in a plain Llama it is silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' is not supported; it must be default, linear or"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": ["linear"]}}, "is not supported"),
        ({"rope_scaling": 3}, "rope_scaling = 3 cannot be used"),
        ({"rope_scaling": {"type": "linear"}}, "factor = None cannot be used"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0 cannot be used"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor belongs to kind 'llama3'"),
        ({"num_hidden_layers": 0}, "layers = 0 cannot be used"),
        ({"num_hidden_layers": "many"}, "layers = 'many' cannot be used"),
        ({"num_key_value_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"rope_theta": float("nan")}, "rope_theta = nan cannot be used"),
        ({"tie_word_embeddings": "perhaps"}, "tie_word_embeddings = 'perhaps' cannot be used: true or false"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' cannot be used: true or false"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings = 0 cannot be used: true or false"),
        ({"hidden_size": "64"}, "hidden_size = '64' cannot be used: a number is expected"),
        ({"num_attention_heads": True}, "num_attention_heads = True cannot be used: a number is expected"),
        ({"rms_norm_eps": [1e-5]}, r"rms_norm_eps = \[1e-05\] cannot be used: a number is expected"),
        ({"rope_theta": "10000"}, "rope_theta = '10000' cannot be used: a number is expected"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor = '2' cannot be used"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling has a factor but no rope_type that uses it"),
        ({"rope_parameters": {"factor": 2.0}}, "rope_parameters has a factor but no rope_type that uses it"),
        ({"rope_scaling": ""}, "rope_scaling = '' cannot be used; a table of settings is expected"),
        ({"rope_scaling": False}, "rope_scaling = False cannot be used"),
        ({"rope_parameters": []}, r"rope_parameters = \[\] cannot be used"),
    ],
    ids=str,
)
def test_configs_of_other_models_are_refused(change, words):
    content = hugging_face_config(ModelConfig(**BASE)) | {"model_type": "llama"} | change
    with pytest.raises(ConfigError, match=words):
        model_config_from_hugging_face(content)


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "intermediate_size", "num_attention_heads"])
def test_a_config_without_a_size_is_refused(name):
    content = hugging_face_config(ModelConfig(**BASE)) | {"model_type": "llama"}
    del content[name]
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        model_config_from_hugging_face(content)


def test_names_go_there_and_back(config):
    weights = ours(config).state_dict()
    again = from_hugging_face(to_hugging_face(weights))
    assert again.keys() == weights.keys()
    assert all(again[name] is weights[name] for name in weights)
    assert to_hugging_face(weights).keys() == theirs(config).state_dict().keys()


def test_a_tied_checkpoint_without_a_head_and_with_rotary_buffers_loads():
    config = ModelConfig(**BASE, tied_head=True)
    weights = dict(theirs(config).state_dict())
    head = weights.pop("lm_head.weight")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    renamed = from_hugging_face(weights)
    assert torch.equal(renamed["lm_head.weight"], head)
    Llama(config).load_state_dict(renamed)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.router.weight", "model.embed_tokens.lora_A"]
)
def test_weights_without_a_place_are_named(name):
    with pytest.raises(ConfigError, match=name):
        from_hugging_face({name: torch.zeros(1)})


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(4, 4), (1, 1), ("ternary", 8), (4, 16)], ids=str)
@pytest.mark.parametrize("shape", ["multi-head", "grouped-query", "tied"])
def test_prepare_quantizes_the_blocks_of_their_model_as_of_ours(shape, weight_bits, act_bits):
    config = ModelConfig(**BASE | SHAPES[shape] | {"layers": 1})
    spec = QuantSpec(weight_bits=weight_bits, act_bits=act_bits)
    reference, model = theirs(config), Llama(config)
    model.load_state_dict(from_hugging_face(reference.state_dict()))
    plain = model(ids())
    prepare(reference, spec)
    prepare(model, spec)
    assert set(quantized_layers(reference)) == {
        f"model.layers.0.{part}_proj"
        for part in [*(f"self_attn.{p}" for p in "qkvo"), *(f"mlp.{p}" for p in ("gate", "up", "down"))]
    }
    expected = model(ids())
    assert (expected - plain).norm() / plain.norm() > 0.01
    # The median over tokens: one whose activation lies within rounding of a cell's edge may fall on either side of it.
    error = (reference(ids()).logits - expected).abs().amax(-1).median()
    assert error < 1e-5 * expected.abs().max()
