"""Packed models in transformers: loaded, run, generated with and saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, pipeline

import questlm
from helpers.packed_models import SHAPE, trained
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.errors import ArtifactError, ConfigError
from questlm.export.pack import pack
from questlm.inference.build import resident_bytes
from questlm.integrations.transformers import QuestlmConfig
from questlm.models import Llama

IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
TEXT_SHAPE = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=257)
Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(spec: QuantSpec, shape: ModelConfig = SHAPE) -> Path:
        pack(trained(spec, shape), tmp_path / "packed")
        return tmp_path / "packed"

    return save


@pytest.fixture
def with_text(tmp_path: Path, tokenizer_json: str) -> Path:
    model = questlm.prepare(Llama(TEXT_SHAPE).initialize(0), QuantSpec())
    pack(model, tmp_path / "text", tokenizer=tokenizer_json)
    return tmp_path / "text"


SPECS = {
    "quest-w4a4": QuantSpec(),
    "quest-w1a1-int8": QuantSpec(weight_bits=1, act_bits=1, embeddings="int8"),
    "weights-only": QuantSpec(weight_bits=2, act_bits=16, embeddings="float"),
    "activations-only": QuantSpec(weight_bits=16, act_bits=4),
    "bitnet": QuantSpec(method="bitnet", weight_bits="ternary", act_bits=8),
    "pquant": QuantSpec(method="pquant", weight_bits=1, act_bits=8),
    "lsq+": QuantSpec(method="lsq+", weight_bits=3, act_bits=3),
    "sparse": QuantSpec(format="int-2:4"),
    "mixed": QuantSpec(overrides={"lm_head": 8, "mlp.down": {"act_bits": 8}}),
    "not-quantised": QuantSpec(weight_bits=16, act_bits=16),
}
SHAPES = {
    "plain": {},
    "tied": {"tied_head": True},
    "multi-query": {"kv_heads": 1},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "long": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "llama3": {
        "rope_scaling": {
            "kind": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position": 64,
        }
    },
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_logits_and_memory_are_those_of_the_engine(spec: QuantSpec, saved: Saved) -> None:
    folder = saved(spec)
    model, engine = AutoModelForCausalLM.from_pretrained(folder), questlm.load(folder)
    assert type(model) is LlamaForCausalLM
    assert model.dtype is torch.float32
    torch.testing.assert_close(model(IDS).logits, engine(IDS), rtol=1e-4, atol=1e-5)
    assert resident_bytes(model) == engine.weight_bytes + rotary_bytes(model)


def rotary_bytes(model: LlamaForCausalLM) -> int:
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if "inv_freq" in name)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_loads(shape: dict[str, object], saved: Saved) -> None:
    folder = saved(QuantSpec(), ModelConfig(**SHAPE.model_dump() | shape))
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(model(IDS).logits, questlm.load(folder)(IDS), rtol=1e-4, atol=1e-5)


def test_loading_says_nothing(saved: Saved, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    folder = saved(QuantSpec(), SHAPE.model_copy(update={"tied_head": True}))
    capsys.readouterr()
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert "newly initialized" not in capsys.readouterr().err + caplog.text


def test_the_base_model_gives_the_residual(saved: Saved) -> None:
    folder = saved(QuantSpec(act_bits=16))
    whole = AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModel.from_pretrained(folder)
    torch.testing.assert_close(base(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)


def test_bfloat16_is_near_float32(saved: Saved) -> None:
    folder = saved(QuantSpec(act_bits=16))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    logits, expected = model(IDS).logits, questlm.load(folder)(IDS)
    assert logits.dtype is torch.bfloat16
    assert (logits - expected).norm() < 0.02 * expected.norm()


def test_greedy_text_is_that_of_the_engine(with_text: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(with_text), AutoTokenizer.from_pretrained(with_text)
    engine = questlm.load(with_text)
    prompts = ["def f(x):", "né"]
    ids = [tokenizer(prompt, return_tensors="pt") for prompt in prompts]
    assert [row["input_ids"][0].tolist() for row in ids] == [engine.encode(prompt) for prompt in prompts]
    options = GenerationOptions(max_new_tokens=12, temperature=0)
    for row, prompt in zip(ids, prompts, strict=True):
        out = model.generate(**row, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        new = out[row["input_ids"].shape[1] :].tolist()
        assert [token for token in new if token != engine.end_of_text] == engine.generate_ids(prompt, options)
    made = pipeline("text-generation", model=str(with_text))(prompts[0], max_new_tokens=12, do_sample=False)
    assert made[0]["generated_text"] == prompts[0] + engine.generate(prompts[0], options)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_saved_model_is_the_same(sharded: bool, saved: Saved, tmp_path: Path) -> None:
    folder = saved(QuantSpec(), SHAPE.model_copy(update={"tied_head": True}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB" if sharded else "1GB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) == 1 + sharded
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    again.save_pretrained(tmp_path / "third")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "third")(IDS).logits, model(IDS).logits)


def test_a_model_whose_files_are_gone_is_not_saved(saved: Saved, tmp_path: Path) -> None:
    folder = saved(QuantSpec())
    model = AutoModelForCausalLM.from_pretrained(folder)
    shutil.rmtree(folder)
    with pytest.raises(ArtifactError, match="are gone or have changed since it was loaded"):
        model.save_pretrained(tmp_path / "again")


def test_damage_is_found(saved: Saved) -> None:
    folder = saved(QuantSpec())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="does not match its SHA-256"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_two_models_in_one_config_are_refused(saved: Saved) -> None:
    folder = saved(QuantSpec())
    (folder / "MANIFEST.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(ArtifactError, match="describes another model to transformers"):
        AutoModelForCausalLM.from_pretrained(folder)
    del config["model"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="not that of a packed model"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("change", ["extra", "lacking", "code"])
def test_without_a_manifest_tensors_are_still_checked(change: str, saved: Saved) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(QuantSpec(weight_bits=3))
    (folder / "MANIFEST.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    name = "layers.0.mlp.up.step"
    if change == "extra":
        tensors["layers.0.mlp.up.bias"] = torch.zeros(4)
    elif change == "lacking":
        del tensors[name]
    else:
        tensors[name] = -tensors[name]
    save_file(tensors, folder / "model.safetensors")
    words = {"extra": "unexpected tensor", "lacking": f"lacks tensor '{name}'", "code": "negative size"}[change]
    with pytest.raises(ArtifactError, match=words):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_packed_model_stays_where_it_was_loaded(saved: Saved) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved(QuantSpec()))
    model.to("cpu")
    with pytest.raises(ConfigError, match=r"load the model where it is to run: .*dtype=torch.bfloat16"):
        model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="device_map='meta'"):
        model.to("meta")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": torch.float16}, "a packed model computes in torch.float32, or in torch.bfloat16"),
        ({"device_map": {"model": "cpu", "lm_head": "disk"}}, "a packed model runs on one device, not on 2"),
    ],
    ids=["float16", "several-devices"],
)
def test_what_cannot_run_is_refused(options: dict[str, object], words: str, saved: Saved) -> None:
    with pytest.raises(ConfigError, match=words):
        AutoModelForCausalLM.from_pretrained(saved(QuantSpec()), **options)


def test_a_model_that_is_not_packed_cannot_be_made_so_while_it_loads(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from questlm.config.hugging_face import hugging_face_config

    LlamaForCausalLM(LlamaConfig(**hugging_face_config(SHAPE))).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=QuestlmConfig())
