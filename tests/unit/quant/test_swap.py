"""prepare and restore: layers change, weights and their names do not."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from questlm import Llama, QuantSpec, prepare, restore
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.quant import FakeQuantLinear, StoredEmbedding, StoredLinear, dense, quantized_layers

SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "mlp_hidden": 48, "vocab_size": 40}
BLOCK_LINEARS = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
SPECS = [
    QuantSpec(weight_bits=w, act_bits=a, embeddings=e)
    for (w, a), e in zip(
        [(1, 1), (4, 4), (8, 8), ("ternary", 8), (4, 16), (16, 3), (2, 2)],
        ["float", "bf16", "int8", "bf16", "int8", "float", "int8"],
        strict=True,
    )
]


def make_llama(seed: int = 0, **shape) -> Llama:
    return Llama(ModelConfig(**SHAPE | shape)).initialize(seed)


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(seed))


def structure(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


@pytest.fixture(params=SPECS, ids=lambda s: f"{s.label}-{s.embeddings}")
def spec(request):
    return request.param


def test_the_linears_of_the_blocks_and_nothing_else_are_quantized(spec):
    model = prepare(make_llama(), spec)
    assert set(quantized_layers(model)) == {f"layers.{i}.{name}" for i in range(2) for name in BLOCK_LINEARS}
    stored = spec.embeddings != "float"
    assert type(model.embed) is (StoredEmbedding if stored else nn.Embedding)
    assert type(model.lm_head) is (StoredLinear if stored else nn.Linear)


def test_state_dict_stays_as_it_was(spec):
    model = make_llama()
    before = {name: (t, t.clone()) for name, t in model.state_dict().items()}
    after = prepare(model, spec).state_dict()
    assert list(after) == list(before)
    for name, (tensor, values) in before.items():
        assert after[name].data_ptr() == tensor.data_ptr()
        assert torch.equal(after[name], values)


def test_saved_and_loaded_gives_the_same_logits_exactly(spec, tmp_path):
    model = prepare(make_llama(), spec)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = prepare(make_llama(seed=1), spec)
    assert not torch.equal(other(ids()), model(ids()))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(ids()), model(ids()))


def test_a_plain_checkpoint_loads_into_a_prepared_model_and_back(spec):
    plain, prepared = make_llama(), prepare(make_llama(seed=1), spec)
    prepared.load_state_dict(plain.state_dict())
    again = make_llama(seed=2)
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(again(ids()), plain(ids()))


@pytest.mark.parametrize("tied", [False, True])
def test_restore_gives_back_the_very_same_parameters_and_outputs(spec, tied):
    model = make_llama(tied_head=tied).eval()
    before, modules, parameters = model(ids()), structure(model), dict(model.named_parameters())
    assert prepare(model, spec) is model
    assert not torch.equal(model(ids()), before)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert restore(model) is model
    assert structure(model) == modules
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(ids()), before)
    assert not any(module.training for module in model.modules())


def test_prepared_on_meta_then_loaded_gives_the_same(spec):
    model = make_llama()
    with torch.device("meta"):
        empty = Llama(model.config)
    prepare(empty, spec)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty(ids()), prepare(model, spec)(ids()))


def test_a_deep_copy_is_independent_and_equal(spec):
    model = prepare(make_llama(), spec)
    twin = copy.deepcopy(model)
    assert structure(twin) == structure(model)
    assert torch.equal(twin(ids()), model(ids()))
    with torch.no_grad():
        twin.layers[0].mlp.down.weight.mul_(-1)
    assert not torch.equal(twin(ids()), model(ids()))


def test_training_and_frozen_flags_survive(spec):
    model = make_llama()
    model.layers[0].eval()
    model.layers[1].mlp.up.weight.requires_grad_(False)
    prepare(model, spec)
    assert not model.layers[0].mlp.up.training
    assert model.layers[1].mlp.up.training
    assert not model.layers[1].mlp.up.weight.requires_grad
    restore(model)
    assert not model.layers[0].mlp.up.training
    assert not model.layers[1].mlp.up.weight.requires_grad


def test_every_parameter_learns(spec):
    model = prepare(make_llama(), spec)
    nn.functional.cross_entropy(model(ids()).flatten(0, 1), ids(1).flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_sixteen_bits_leave_the_model_alone():
    model = make_llama()
    before, modules = model(ids()), structure(model)
    prepare(model, QuantSpec(weight_bits=16, act_bits=16, embeddings="float"))
    assert structure(model) == modules
    assert torch.equal(model(ids()), before)


def test_sixteen_bits_with_a_stored_form_rounds_every_matrix_and_no_norm():
    model = make_llama()
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for matrix in (p for p in expected.parameters() if p.ndim == 2):
            matrix.copy_(matrix.bfloat16())
    prepare(model, QuantSpec(weight_bits=16, act_bits=16, embeddings="bf16"))
    assert not quantized_layers(model)
    assert torch.equal(model(ids()), expected(ids()))


def test_a_tied_head_is_left_out_and_stays_tied():
    model = nn.ModuleDict({"words": nn.Embedding(40, 32), "hidden": nn.Linear(32, 32), "output": nn.Linear(32, 40)})
    model.output.weight = model.words.weight
    prepare(model, QuantSpec(embeddings="int8"))
    assert set(quantized_layers(model)) == {"hidden"}
    assert isinstance(model.output, StoredLinear)
    assert model.output.weight is model.words.weight
    restore(model)
    assert model.output.weight is model.words.weight


@pytest.mark.parametrize("embeddings", ["float", "bf16"])
def test_preparing_twice_is_refused_and_changes_nothing(embeddings):
    model = prepare(make_llama(), QuantSpec(embeddings=embeddings))
    before = structure(model)
    with pytest.raises(ConfigError, match=r"restore\(model\)"):
        prepare(model, QuantSpec())
    assert structure(model) == before


def test_restore_of_a_plain_model_is_a_no_op():
    model = make_llama()
    layers = list(model.modules())
    assert restore(model) is model
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True))


@pytest.mark.parametrize(
    ("model", "filter_fn"),
    [(nn.Sequential(nn.ReLU()), None), (nn.Embedding(4, 16), None), (nn.Linear(16, 16), lambda m, n: False)],
)
def test_nothing_to_quantize_is_an_error(model, filter_fn):
    with pytest.raises(ConfigError, match="nothing to quantise"):
        prepare(model, QuantSpec(embeddings="bf16"), filter_fn)
    assert not any(isinstance(m, StoredEmbedding | StoredLinear) for m in model.modules())


@pytest.mark.parametrize(
    "spec", [QuantSpec(), QuantSpec(embeddings="bf16"), QuantSpec(method="qest"), QuantSpec(block_size=32)]
)
def test_a_failing_prepare_names_the_layer_and_leaves_the_model_unchanged(spec):
    model = nn.Sequential(nn.Embedding(4, 16), nn.Linear(16, 16), nn.ModuleDict({"odd": nn.Linear(40, 16)}))
    before = [*model.modules()]
    with pytest.raises(ConfigError, match=r"quest|2\.odd|1"):
        prepare(model, spec)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


def test_the_layer_without_a_block_is_named_and_can_be_left_out():
    model = nn.Sequential(nn.Linear(16, 16), nn.ModuleDict({"odd": nn.Linear(40, 16)}))
    with pytest.raises(ConfigError, match=r"'1\.odd'.*40.*a block_size of 1.*--set quant\.block_size=N"):
        prepare(model, QuantSpec())
    prepare(model, QuantSpec(), lambda module, name: module.in_features % 16 == 0)
    assert set(quantized_layers(model)) == {"0"}


def test_an_unknown_method_gives_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'quest'"):
        prepare(nn.Linear(16, 16), QuantSpec(method="qest"))


def test_filter_fn_sees_each_linear_with_its_name_and_decides():
    model, seen = make_llama(), set()

    def only_values(module: nn.Module, name: str) -> bool:
        assert isinstance(module, nn.Linear)
        assert model.get_submodule(name) is module
        seen.add(name)
        return name.endswith(".v")

    prepare(model, QuantSpec(), only_values)
    assert set(quantized_layers(model)) == {"layers.0.attention.v", "layers.1.attention.v"}
    assert seen == {"lm_head", *(f"layers.{i}.{name}" for i in range(2) for name in BLOCK_LINEARS)}


def test_filter_fn_may_quantize_the_head():
    model = prepare(make_llama(), QuantSpec(), lambda module, name: True)
    assert "lm_head" in quantized_layers(model)


def test_a_layer_used_twice_is_swapped_in_both_places():
    shared = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU(), shared)})
    prepare(model, QuantSpec())
    assert isinstance(model["a"], FakeQuantLinear)
    assert model["a"] is model["b"][0] is model["b"][2]
    restore(model)
    assert type(model["a"]) is nn.Linear
    assert model["a"] is model["b"][0] is model["b"][2]


def test_multihead_attention_is_left_alone_and_still_works():
    attention = nn.MultiheadAttention(32, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention, "mlp": nn.Linear(32, 32)})
    x = torch.randn(2, 5, 32)
    before = attention(x, x, x)[0]
    prepare(model, QuantSpec())
    assert set(quantized_layers(model)) == {"mlp"}
    assert torch.equal(attention(x, x, x)[0], before)


def test_a_bare_linear_comes_back_wrapped():
    linear = nn.Linear(32, 8)
    layer = prepare(linear, QuantSpec())
    assert isinstance(layer, FakeQuantLinear)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    plain = restore(layer)
    assert type(plain) is nn.Linear
    assert plain.weight is linear.weight
    assert plain.bias is linear.bias


def test_the_spec_shows_in_the_repr():
    layer = prepare(nn.Linear(48, 8), QuantSpec(weight_bits="ternary", act_bits=8))
    assert "quest-wta8" in repr(layer)
    assert "block_size=16" in repr(layer)


def test_dense_runs_plain_products_inside_the_block_only():
    model = make_llama()
    plain = model(ids())
    quantized = prepare(model, QuantSpec(embeddings="float"))(ids())
    with dense(model):
        assert torch.equal(model(ids()), plain)
    assert torch.equal(model(ids()), quantized)
    with pytest.raises(RuntimeError, match="inside"), dense(model):
        raise RuntimeError("inside")
    assert torch.equal(model(ids()), quantized)


def test_dense_blocks_nest():
    model = prepare(make_llama(), QuantSpec())
    with dense(model):
        plain = model(ids())
        with dense(model):
            pass
        assert torch.equal(model(ids()), plain)


def test_a_prepared_llama_runs_under_bfloat16_autocast():
    model = prepare(make_llama(), QuantSpec(weight_bits=8, act_bits=8, embeddings="bf16"))
    exact = model(ids())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids())
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids(1).flatten())
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).norm() / exact.norm() < 3e-2
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
