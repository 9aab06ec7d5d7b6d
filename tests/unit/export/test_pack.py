from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import questlm
from questlm import ops
from questlm.artifact.format import ArtifactConfig, expected_tensors
from questlm.artifact.read import load_artifact
from questlm.artifact.shapes import matrix_shapes, norm_widths
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ArtifactError, ConfigError
from questlm.export.pack import pack
from questlm.models import Llama
from questlm.quant import quantized_layers

TINY = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=257)


def prepared(config: ModelConfig = TINY, **spec: object) -> Llama:
    return questlm.prepare(Llama(config).initialize(0), QuantSpec(**spec))


@pytest.mark.parametrize("tied", [False, True])
def test_the_names_and_shapes_of_the_format_are_those_of_the_model(tied: bool) -> None:
    config = ModelConfig(layers=2, hidden=48, heads=4, kv_heads=2, head_dim=8, vocab_size=99, tied_head=tied)
    parameters = {name: tuple(p.shape) for name, p in Llama(config).named_parameters()}
    matrices = {f"{name}.weight": shape for name, shape in matrix_shapes(config).items()}
    assert parameters == matrices | {f"{name}.weight": (48,) for name in norm_widths(config)}


def test_the_codes_in_the_file_are_the_codes_of_the_model(tmp_path) -> None:
    model = prepared(weight_bits=3, act_bits=4)
    pack(model, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    for name, layer in quantized_layers(model).items():
        codes, _, step, _ = layer.quantized_weight()
        assert torch.equal(ops.unpack(tensors[f"{name}.codes"], 8, layer.in_features), codes)
        assert torch.equal(tensors[f"{name}.step"], step)


def test_the_bytes_by_part_add_up_to_the_folder(tmp_path, tokenizer_json) -> None:
    report = pack(prepared(), tmp_path / "a", tokenizer=tokenizer_json)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "a").iterdir() if file.name != "README.md")
    assert report.bytes == sum(report.bytes_by_part.values()) == on_disk == load_artifact(tmp_path / "a").bytes
    assert report.bytes_by_part["codes"] == sum(o * i for o, i in matrix_shapes(TINY).values()) // 2 - 257 * 32
    assert report.bf16_bytes == 2 * sum(p.numel() for p in Llama(TINY).parameters())
    assert report.bits_per_parameter == pytest.approx(8 * on_disk / TINY.parameters)
    manifest = json.loads((tmp_path / "a" / "MANIFEST.json").read_text())
    assert manifest["details"]["bytes_by_part"] | {"manifest": report.bytes_by_part["manifest"]} == report.bytes_by_part


def test_what_the_caller_records_comes_back(tmp_path, tokenizer_json) -> None:
    training = {"val_loss": 1.25, "data": {"source": "stdlib"}, "seq_len": 64}
    pack(prepared(), tmp_path / "a", tokenizer=tokenizer_json.encode(), training=training)
    artifact = load_artifact(tmp_path / "a")
    assert artifact.config.training == training
    assert artifact.config.model == TINY
    assert artifact.tokenizer_json == tokenizer_json


def test_packing_the_same_model_twice_gives_the_same_bytes(tmp_path) -> None:
    for name in "ab":
        pack(prepared(), tmp_path / name, license="mit")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_each_layer_may_have_its_own_format(tmp_path) -> None:
    model = Llama(TINY).initialize(0)
    questlm.prepare(model, QuantSpec(weight_bits=2), filter_fn=lambda _, name: ".mlp." in name)
    pack(model, tmp_path / "a", embeddings="int8")
    config = load_artifact(tmp_path / "a").config
    assert config.weight_format("layers.0.attention.q").weight == "bf16"
    assert config.weight_format("lm_head").weight == config.weight_format("embed").weight == "int8"
    layer, stored = model.layers[0].mlp.up, config.weight_format("layers.0.mlp.up")
    assert stored.grids == (layer.weight_quantizer.grid, layer.act_quantizer.grid)
    assert stored.block_size == layer.block_size
    assert expected_tensors(config)["layers.0.mlp.down.codes"].shape == (32, 48 * 2 // 8)


def test_an_existing_folder_is_left_alone(tmp_path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        pack(prepared(), tmp_path)


@pytest.mark.parametrize("name", ["layers.0.attention.q.weight", "embed.weight", "norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, name: str, value: float) -> None:
    model = prepared()
    with torch.no_grad():
        model.get_parameter(name).flatten()[3] = value
    with pytest.raises(ConfigError, match=rf"{name} holds a value that is not finite"):
        pack(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_step_that_overflows_is_refused_and_nothing_is_left(tmp_path) -> None:
    model = prepared()
    with torch.no_grad():
        model.layers[0].mlp.up.weight.fill_(3e38)
    with pytest.raises(ArtifactError, match="not finite"):
        pack(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_row_of_zeros_packs(tmp_path) -> None:
    model = prepared(weight_bits="ternary", act_bits=4)
    with torch.no_grad():
        model.layers[0].mlp.up.weight[5] = 0
    pack(model, tmp_path / "a")
    assert load_artifact(tmp_path / "a").tensors["layers.0.mlp.up.step"][5] == 0


def test_what_cannot_be_packed_is_said_in_one_sentence(tmp_path, tokenizer_json) -> None:
    out = tmp_path / "a"
    with pytest.raises(ConfigError, match="only a questlm Llama"):
        pack(torch.nn.Linear(4, 4), out)
    with pytest.raises(ConfigError, match="float32 weights"):
        pack(prepared().bfloat16(), out)
    with pytest.raises(ConfigError, match="not plain JSON"):
        pack(prepared(), out, training={"loss": float("nan")})
    with pytest.raises(ConfigError, match="not plain JSON"):
        pack(prepared(), out, training={"path": tmp_path})
    with pytest.raises(ConfigError, match="has the id 256, but the model's vocabulary has 64"):
        pack(prepared(TINY.model_copy(update={"vocab_size": 64})), out, tokenizer=tokenizer_json)
    with pytest.raises(ConfigError, match="tokenizer cannot be packed"):
        pack(prepared(), out, tokenizer="{}")
    biased = prepared()
    biased.layers[0].mlp.up.bias = torch.nn.Parameter(torch.zeros(48))
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up\.bias"):
        pack(biased, out)
    tied = Llama(TINY.model_copy(update={"tied_head": True})).initialize(0)
    with pytest.raises(ConfigError, match="tied head"):
        pack(questlm.prepare(tied, QuantSpec(), filter_fn=lambda module, name: True), out)
    assert not list(tmp_path.iterdir())


def test_a_config_must_name_exactly_the_matrices_of_its_shape(tmp_path) -> None:
    pack(prepared(), tmp_path / "a")
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    layers = values["quantization_config"]["layers"]
    for change in ({"extra": 0}, {"embed": 99}, {"embed": layers["layers.0.mlp.up"]}):
        damaged = values | {"quantization_config": values["quantization_config"] | {"layers": layers | change}}
        with pytest.raises(ConfigError):
            ArtifactConfig(**damaged)
