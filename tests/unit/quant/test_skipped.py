"""What `prepare` leaves as it is, and that it says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from questlm import Llama, QuantSpec, prepare, restore
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.quant import METHODS, quantized_layers, skipped_layers


class Conv1D(nn.Module):
    """The linear layer of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))


class Adapted(nn.Module):
    """A layer as PEFT wraps it: `adapter_layer_names` says which attributes hold adapters."""

    adapter_layer_names = ("lora_A", "lora_B", "lora_embedding_A", "hada_w1")

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 16, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(16, base.out_features, bias=False)})
        self.hada_w1 = nn.ParameterDict({"default": nn.Parameter(torch.randn(4, 4))})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return y


def odd_model() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "plain": nn.Linear(32, 32),
            "normed": parametrizations.weight_norm(nn.Linear(32, 32)),
            "orthogonal": parametrizations.orthogonal(nn.Linear(32, 32)),
            "pruned": prune.l1_unstructured(nn.Linear(32, 32), "weight", 0.5),
            "conv1d": Conv1D(),
            "attention": nn.MultiheadAttention(32, 2),
            "words": nn.Embedding(10, 32),
            "norm": nn.LayerNorm(32),
            "lm_head": nn.Linear(32, 10),
        }
    )


@pytest.mark.parametrize("embeddings", ["float", "bf16"])
def test_layers_left_as_they_are_are_listed_with_the_reason(embeddings: str) -> None:
    model = odd_model()
    before = skipped_layers(model)
    prepare(model, QuantSpec(embeddings=embeddings))
    assert set(quantized_layers(model)) == {"plain"}
    assert skipped_layers(model) == before
    assert set(before) == {"normed", "orthogonal", "pruned", "conv1d", "attention", "attention.out_proj"}
    assert "parametrize" in before["normed"] and "parametrize" in before["orthogonal"]
    assert "weight_orig" in before["pruned"]
    assert "Conv1D" in before["conv1d"]
    assert "subclass of nn.Linear" in before["attention.out_proj"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_norm_is_listed_too() -> None:
    model = nn.ModuleDict({"plain": nn.Linear(32, 32), "normed": nn.utils.weight_norm(nn.Linear(32, 32))})
    prepare(model, QuantSpec())
    assert set(quantized_layers(model)) == {"plain"}
    assert "weight_g, weight_v" in skipped_layers(model)["normed"]


def test_the_advice_for_a_computed_weight_works() -> None:
    model = odd_model()
    for name in ("normed", "orthogonal"):
        parametrize.remove_parametrizations(model[name], "weight")
    prune.remove(model["pruned"], "weight")
    prepare(model, QuantSpec())
    assert set(quantized_layers(model)) == {"plain", "normed", "orthogonal", "pruned"}


def test_adapters_stay_as_they_are_and_the_layer_below_is_quantised() -> None:
    model = nn.ModuleDict(
        {"mlp": nn.ModuleDict({"up": Adapted(nn.Linear(32, 48))}), "lm_head": Adapted(nn.Linear(32, 48))}
    )
    adapters = {name: module for name, module in model.named_modules() if ".lora_" in name}
    prepare(model, QuantSpec(embeddings="bf16"))
    assert set(quantized_layers(model)) == {"mlp.up.base_layer"}
    assert all(model.get_submodule(name) is module for name, module in adapters.items())
    assert set(skipped_layers(model)) == {f"{n}.lora_{x}.default" for n in ("mlp.up", "lm_head") for x in "AB"}
    model["mlp"]["up"](torch.randn(2, 32)).sum().backward()
    assert all(p.grad is not None for n, p in model["mlp"].named_parameters() if "hada" not in n)
    restore(model)
    assert not quantized_layers(model)


def test_overrides_name_a_layer_below_an_adapter_as_the_model_does() -> None:
    model = nn.ModuleDict(
        {"mlp": nn.ModuleDict({"up": Adapted(nn.Linear(32, 48)), "down": Adapted(nn.Linear(32, 48))})}
    )
    prepare(model, QuantSpec(overrides={"mlp.up": 8}))
    assert {n: layer.spec.weight_bits for n, layer in quantized_layers(model).items()} == {
        "mlp.up.base_layer": 8,
        "mlp.down.base_layer": 4,
    }


def test_adapters_of_other_libraries_are_known_by_their_names() -> None:
    model = nn.ModuleDict({"lora_a": nn.Linear(32, 16), "lora_b": nn.Linear(16, 32), "plain": nn.Linear(32, 32)})
    prepare(model, QuantSpec())
    assert set(quantized_layers(model)) == {"plain"}


def test_pefts_own_layers_are_recognised() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=["0", "2"]))
    prepare(adapted, QuantSpec())
    names = set(quantized_layers(adapted))
    assert len(names) == 2 and all(name.endswith(".base_layer") for name in names)
    assert len(skipped_layers(adapted)) == 4
    adapted(torch.randn(2, 32)).sum().backward()


@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_our_own_model_is_skipped_by_any_method(name: str) -> None:
    model = Llama(ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=50)).initialize(0)
    method = METHODS[name]
    bits = {"weight_bits": method.weight.bits[0], "act_bits": method.act.bits[0]}
    spec = QuantSpec.model_validate({"method": name, "embeddings": "int8", **bits})
    assert skipped_layers(prepare(model, spec)) == {}


def test_a_module_with_a_matrix_of_its_own_names_it_and_vectors_are_no_matrices() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    model.cls_token = nn.Parameter(torch.randn(1, 1, 32))
    assert skipped_layers(model) == {}
    model.positions = nn.Parameter(torch.randn(1, 9, 32))
    assert "positions" in skipped_layers(model)[""]


def test_a_model_of_skipped_layers_only_is_refused_with_a_reason() -> None:
    with pytest.raises(ConfigError, match=r"nothing to quantise.*'0' is left out: its weight is computed by"):
        prepare(nn.Sequential(parametrizations.weight_norm(nn.Linear(32, 32))), QuantSpec())
