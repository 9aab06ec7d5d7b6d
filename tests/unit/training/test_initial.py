"""Training that begins from an existing model: a Hugging Face folder, or a run of ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

import questlm
from questlm.cli import main
from questlm.config import GenerationOptions, ModelConfig, RunConfig, to_yaml
from questlm.config.hugging_face import hugging_face_config, hugging_face_family
from questlm.data import prepare
from questlm.errors import CheckpointError, ConfigError, DataError, QuestError
from questlm.evaluation import evaluate
from questlm.export.pack import pack
from questlm.manifest import write_manifest
from questlm.models import Llama
from questlm.models.names import to_hugging_face
from questlm.records import RunRecord
from questlm.training import RunFolder, Trainer, load_run, resume, train
from questlm.training.build import build_model
from questlm.training.checkpoint import latest_checkpoint
from questlm.training.initial import find_initial

transformers = pytest.importorskip("transformers")

Settings = Callable[..., RunConfig]

BASE = {"layers": 2, "hidden": 32, "heads": 4, "mlp_hidden": 64, "vocab_size": 300}
LLAMA3 = {
    "kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 16,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "tied": {"tied_head": True},
    "grouped-query": {"kv_heads": 2},
    "head-dim": {"head_dim": 16, "kv_heads": 1},
    "qwen2": {"qkv_bias": True, "kv_heads": 2},
    "qwen3": {"qk_norm": True, "tied_head": True},
    "linear": {"rope_scaling": {"kind": "linear", "factor": 2.0}},
    "llama3-tied": {"rope_scaling": LLAMA3, "tied_head": True, "kv_heads": 2, "rope_theta": 500.0, "norm_eps": 1e-3},
}
OFF = {"weight_bits": 16, "act_bits": 16, "embeddings": "float"}


@pytest.fixture(scope="module")
def donor(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours, not quantised, long enough to have learned something."""
    settings = tiny_settings(
        model={**BASE, "kv_heads": 2, "vocab_size": None},
        quant=OFF,
        train={"seq_len": 32, "batch_size": 4, "lr": 1e-2, "log_every": 3},
        budget={"tokens": 60 * 4 * 32},
    )
    path = tmp_path_factory.mktemp("donor") / "run"
    train(settings, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(donor: Path) -> Path:
    return RunFolder(donor).tokenizer_file


@pytest.fixture(scope="module")
def exported(donor: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The donor's weights as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("exported") / "theirs"
    model = load_run(donor).model
    write_folder(path, model.config, model.state_dict(), tokenizer)
    return path


def write_folder(path: Path, shape: ModelConfig, weights: dict[str, Tensor], tokenizer: Path | None = None) -> None:
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hugging_face_config(shape)))
    reference.load_state_dict(to_hugging_face(weights))
    reference.save_pretrained(path)
    if tokenizer is not None:
        shutil.copy(tokenizer, path / "tokenizer.json")


def random_folder(path: Path, tokenizer: Path | None = None, **shape: Any) -> Any:
    """Write a random model of transformers' own making, and return it."""
    torch.manual_seed(0)
    config = ModelConfig(**BASE | shape)
    family = hugging_face_family(config).capitalize()
    settings = getattr(transformers, f"{family}Config")(**hugging_face_config(config), attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    if tokenizer is not None:
        shutil.copy(tokenizer, path / "tokenizer.json")
    return model.eval()


@pytest.fixture
def settings(corpus: Path) -> Settings:
    """Settings that say nothing of the shape: three steps from the folder `init_from`."""

    def build(init_from: Path | None, /, **sections: Any) -> RunConfig:
        values: dict[str, Any] = {
            "init_from": str(init_from) if init_from else None,
            "quant": {"embeddings": "bf16"},
            "data": {"source": str(corpus), "val_fraction": 0.1},
            "train": {"seq_len": 32, "batch_size": 4, "lr": 1e-3, "log_every": 1, "checkpoint_every": 2},
            "budget": {"tokens": 3 * 4 * 32},
        }
        for name, value in sections.items():
            values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
        return RunConfig(**values)

    return build


def started(config: RunConfig) -> Llama:
    initial = find_initial(config)
    assert initial is not None
    return build_model(config.model_copy(update={"model": initial.shape}), initial)


def val_loss(logits: Callable[[Tensor], Tensor], config: RunConfig, tokenizer: Path) -> float:
    data = prepare(config.data.model_copy(update={"tokenizer": str(tokenizer)}), 300)
    return evaluate(logits, data.val, config.train.seq_len, show_progress=False).loss


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_are_those_of_transformers(shape: dict[str, Any], settings: Settings, tmp_path: Path) -> None:
    reference = random_folder(tmp_path / "theirs", **shape)
    model = started(settings(tmp_path / "theirs", quant=OFF))
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = reference(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(dtype: torch.dtype, settings: Settings, tmp_path: Path) -> None:
    random_folder(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    save_file({name: weight.to(dtype) for name, weight in load_file(file).items()}, file)
    model = started(settings(tmp_path / "theirs", quant=OFF))
    stored = load_file(file)["model.layers.1.mlp.down_proj.weight"]
    weight = model.get_parameter("layers.1.mlp.down.weight")
    assert weight.dtype is torch.float32
    assert torch.equal(weight, stored.float())


def test_shards_are_the_same_as_one_file(settings: Settings, tmp_path: Path) -> None:
    reference = random_folder(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = (started(settings(tmp_path / name, quant=OFF)).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_link_into_a_cache_is_followed(settings: Settings, tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub, whose folders hold links to files elsewhere."""
    random_folder(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    file.rename(tmp_path / "blob")
    file.symlink_to("../blob")
    started(settings(tmp_path / "theirs", quant=OFF))


def test_a_tied_head_that_is_stored_too(settings: Settings, tmp_path: Path) -> None:
    random_folder(tmp_path / "theirs", tied_head=True)
    file = tmp_path / "theirs" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file)
    started(settings(tmp_path / "theirs", quant=OFF))
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ConfigError, match="holds another head"):
        started(settings(tmp_path / "theirs", quant=OFF))


def test_a_run_gives_its_weights_and_nothing_else(donor: Path, settings: Settings, tmp_path: Path) -> None:
    quantized = train(settings(donor), tmp_path / "run")
    assert quantized.config["model"] == load_run(donor).config.model.model_dump(mode="json")
    model = started(settings(tmp_path / "run", quant={"method": "quest", "weight_bits": 2, "act_bits": 16}))
    weights = load_run(tmp_path / "run").model.state_dict()
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def test_what_quantisers_of_a_run_have_learned_is_ignored(donor: Path, settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(donor, tmp_path / "donor")
    newest = latest_checkpoint(tmp_path / "donor" / "checkpoints")
    assert newest is not None
    change_weights(newest, lambda weights: weights.update({"layers.0.attention.q.scale": torch.ones(1)}))
    write_manifest(newest, "questlm-checkpoint", 1, {"step": int(newest.name.removeprefix("step-"))})
    plain, other = (started(settings(path, quant=OFF)).state_dict() for path in (donor, tmp_path / "donor"))
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


# -- training ----------------------------------------------------------------------------------------------------------


def test_without_quantisation_the_loss_is_that_of_transformers(
    tokenizer: Path, settings: Settings, tmp_path: Path
) -> None:
    reference = random_folder(tmp_path / "theirs", tokenizer, rope_scaling=LLAMA3, kv_heads=2)
    config = settings(
        tmp_path / "theirs",
        quant=OFF,
        train={"lr": 1e-30, "weight_decay": 0.0},
        budget={"tokens": 1},
    )
    with torch.no_grad():
        expected = val_loss(lambda ids: reference(ids).logits, config, tokenizer)
    record = train(config, tmp_path / "run")
    assert record.final is not None
    assert record.final["loss"] == pytest.approx(expected, rel=1e-6)


def test_four_bits_begin_near_the_model_and_can_be_packed(exported: Path, settings: Settings, tmp_path: Path) -> None:
    config = settings(exported)
    record = train(config, tmp_path / "run")
    initial = find_initial(config)
    assert initial is not None
    dense = val_loss(started(settings(exported, quant=OFF)), config, exported / "tokenizer.json")
    fresh = 5.7  # log(300)
    assert dense < fresh - 2
    assert record.curve[0]["step"] == 1
    assert abs(record.curve[0]["loss"] - dense) < 0.25 * (fresh - dense)
    assert record.checks["quantized_layers"] == 14
    assert record.config["init_from"] == str(exported)
    assert record.config["model"]["kv_heads"] == 2
    digest = hashlib.sha256((exported / "model.safetensors").read_bytes()).hexdigest()
    assert record.initial_weights == RunRecord.load(tmp_path / "run").initial_weights == digest

    text = (tmp_path / "run" / "tokenizer.json").read_text()
    ours, given = Tokenizer.from_str(text), Tokenizer.from_file(str(exported / "tokenizer.json"))
    assert ours.get_vocab() == given.get_vocab()
    pack(load_run(tmp_path / "run").model, tmp_path / "packed", tokenizer=text)
    answer = questlm.load(tmp_path / "packed").generate("the quick", GenerationOptions(max_new_tokens=5, seed=0))
    assert isinstance(answer, str)
    assert answer


@pytest.mark.slow
@pytest.mark.parametrize("method", ["quest", "lsq", "seq"])
def test_faded_in_it_begins_as_the_model_and_ends_quantised(
    method: str, exported: Path, settings: Settings, tmp_path: Path
) -> None:
    quant = {"method": method, "weight_bits": 2, "act_bits": 2}
    losses = {
        share: train(settings(exported, quant={**quant, "gradual": share}), tmp_path / str(share)).curve[0]["loss"]
        for share in (0.0, 0.9)
    }
    plain = train(settings(exported, quant=OFF), tmp_path / "plain").curve[0]["loss"]
    assert losses[0.9] == pytest.approx(plain, abs=2e-3)  # of bf16 embeddings
    assert losses[0.0] > plain + 0.01
    pack(load_run(tmp_path / "0.9").model, tmp_path / "packed")


def test_scaled_positions_survive_packing(tokenizer: Path, settings: Settings, tmp_path: Path) -> None:
    random_folder(tmp_path / "theirs", tokenizer, rope_scaling=LLAMA3)
    train(settings(tmp_path / "theirs"), tmp_path / "run")
    model = load_run(tmp_path / "run").model
    pack(model, tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["model"]["rope_scaling"] == LLAMA3
    ids = torch.randint(0, 300, (1, 40))
    packed = questlm.load(tmp_path / "packed")
    torch.testing.assert_close(packed.logits(ids), model(ids), rtol=1e-3, atol=1e-3)


def test_a_shape_that_agrees_may_be_named(exported: Path, settings: Settings, tmp_path: Path) -> None:
    config = settings(exported, model={"layers": 2, "hidden": 32, "heads": 4, "head_dim": 8})
    train(config, tmp_path / "run")
    again = RunConfig(**RunFolder(tmp_path / "run").read_config().model_dump())  # every setting, all given
    assert train(again, tmp_path / "again").curve == RunRecord.load(tmp_path / "run").curve


def test_another_tokenizer_may_be_named(exported: Path, tokenizer: Path, settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    train(settings(tmp_path / "theirs", data={"tokenizer": str(tokenizer)}), tmp_path / "run")


def test_token_shards_need_no_tokenizer(exported: Path, settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    write_shard(tmp_path / "tokens.bin", [1, 2, 3, 4] * 300)
    train(settings(tmp_path / "theirs", data={"source": str(tmp_path / "tokens.bin")}), tmp_path / "run")
    assert not RunFolder(tmp_path / "run").tokenizer_file.exists()


def write_shard(path: Path, ids: list[int]) -> None:
    import numpy as np

    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype="<u2").tobytes())


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(exported: Path, tmp_path: Path) -> Path:
    """A copy of the folder, which a test may damage or remove."""
    return Path(shutil.copytree(exported, tmp_path / "theirs"))


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training die, as if killed, when it comes to `step`."""
    original = Trainer._step

    def killed(self: Trainer, *arguments: float) -> None:
        if self.state.counters.step == step:
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", killed)


def test_resuming_needs_the_folder_no_more(
    theirs: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(theirs)
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    shutil.rmtree(theirs)
    record = resume(tmp_path / "run", config)
    assert record.final == whole.final
    assert record.initial_weights == whole.initial_weights is not None
    newest = [latest_checkpoint(RunFolder(tmp_path / name).checkpoints) for name in ("whole", "run")]
    ends = [load_file(path / "model.safetensors") for path in newest if path is not None]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_killed_before_the_first_checkpoint_it_needs_the_folder_again(
    theirs: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(theirs), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(0, patch)
        with pytest.raises(KeyboardInterrupt):
            train(settings(theirs), tmp_path / "run")
    theirs.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint yet, so it must begin again, but init_from .*theirs'"):
        resume(tmp_path / "run")
    (tmp_path / "elsewhere").rename(theirs)
    record = resume(tmp_path / "run")
    assert (record.final, record.initial_weights) == (whole.final, whole.initial_weights)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"init_from": "other"}, "init_from = '.*theirs', but the settings now say 'other'"),
        ({"init_from": None}, "init_from = '.*theirs', but the settings now say None"),
        ({"model": {"layers": 3}}, r"model\.layers = 3, but the model in .* has 2"),
    ],
)
def test_resuming_with_another_beginning_is_refused(
    changed: dict[str, Any], words: str, theirs: Path, settings: Settings, tmp_path: Path
) -> None:
    train(settings(theirs), tmp_path / "run")
    with pytest.raises(QuestError, match=words):
        resume(tmp_path / "run", settings(theirs, **changed))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_shape_that_contradicts_is_refused(theirs: Path, settings: Settings, tmp_path: Path) -> None:
    for name, value, real in [("layers", 3, 2), ("kv_heads", None, 2), ("vocab_size", 512, 300), ("tied_head", 1, 0)]:
        expected = rf"model\.{name} = {bool(value) if name == 'tied_head' else 4 if value is None else value}.* has "
        with pytest.raises(ConfigError, match=expected + f"{bool(real) if name == 'tied_head' else real}"):
            train(settings(theirs, model={"heads": 4, name: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_vocabulary(theirs: Path, settings: Settings, tmp_path: Path) -> None:
    content = json.loads((theirs / "tokenizer.json").read_text())
    content["model"]["vocab"]["zebra"] = 300
    (theirs / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"ids up to 300, but the vocabulary of the model in .* has 300 entries"):
        train(settings(theirs), tmp_path / "run")


def test_text_without_a_tokenizer(theirs: Path, settings: Settings, tmp_path: Path) -> None:
    (theirs / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json, .*--set data\.tokenizer=PATH"):
        train(settings(theirs), tmp_path / "run")


def edit(path: Path, **changes: Any) -> None:
    content = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "gone"}
    path.write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda weights: weights.pop(name))


def _set(name: str, weight: Callable[[], Tensor]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda weights: weights.update({name: weight()}))


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _header(change: Callable[[str], str]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = change(data[8:end].decode().rstrip()).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])

    return rewrite


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _index(content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return write


def _map(**names: Any) -> Any:
    return _index({"weight_map": names})


def _twice(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    content = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _half(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )


Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"

BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no-config": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "config-not-json": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "config-a-list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, not an object"),
    "other-model": (lambda f: edit(f / "config.json", model_type="gpt2"), "model_type 'gpt2' is not supported"),
    "bias": (lambda f: edit(f / "config.json", attention_bias=True), "attention_bias = True is not supported"),
    "yarn": (
        lambda f: edit(f / "config.json", rope_parameters={"rope_type": "yarn", "factor": 2}),
        "'yarn' is not supported; it must be default, linear or llama3",
    ),
    "no-size": (lambda f: edit(f / "config.json", hidden_size="gone"), "hidden_size is missing"),
    "huge-size": (lambda f: edit(f / "config.json", hidden_size=10**400), "hidden = "),
    "huge-theta": (lambda f: edit(f / "config.json", rope_parameters={"rope_theta": 10**400}), "rope_theta"),
    "other-size": (lambda f: edit(f / "config.json", intermediate_size=128), "by the config it must be (128, 32)"),
    "fewer-layers": (lambda f: edit(f / "config.json", num_hidden_layers=1), "which by its config is not there"),
    "more-layers": (lambda f: edit(f / "config.json", num_hidden_layers=1000), "lacks the weight layers."),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter, not a model; merge it"),
    "no-weights": (lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    "pickled": (_pickled, "pytorch_model.bin, a format that can run code when read, so it is not opened; convert it"),
    "cut": (_cut, "model.safetensors is not a usable safetensors file"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a usable safetensors file"),
    "not-tensors": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "not a usable safetensors file"),
    "twice-in-header": (_header(lambda h: h[:-1] + f', "{Q}": {json.dumps(json.loads(h)[Q])}}}'), "is there twice"),
    "huge-header": (_header(lambda h: h + " " * 17 * 2**20), "model.safetensors has a header of"),
    "string-size": (lambda f: edit(f / "config.json", hidden_size="32"), "hidden_size = '32' cannot be used"),
    "lacking": (_drop(Q), "lacks the weight layers.0.attention.q.weight"),
    "no-head": (_drop("lm_head.weight"), "lacks the weight lm_head.weight"),
    "a-bias": (_set(Q.replace("weight", "bias"), lambda: torch.zeros(32)), "which by its config is not there"),
    "lora": (_set(Q.replace("weight", "lora_A.weight"), lambda: torch.zeros(2)), "has no place in a Llama"),
    "reshaped": (_set(Q, lambda: torch.zeros(16, 32)), "q_proj.weight is (16, 32), but by the config it must be"),
    "integers": (_set(Q, lambda: torch.zeros(32, 32, dtype=torch.int8)), "is stored as I8; only F32, F16, BF16"),
    "nan": (_set(DOWN, lambda: torch.full((32, 64), float("nan"))), "holds a value that is not finite"),
    "inf": (_set(DOWN, lambda: torch.full((32, 64), float("-inf"))), "holds a value that is not finite"),
    "index-outside": (_map(x="../x.safetensors"), "'../x.safetensors', which is no safetensors file in its folder"),
    "index-absolute": (_map(x="/x.safetensors"), "refusing to read it"),
    "index-pickle": (_map(x="x.bin"), "'x.bin', which is no safetensors file"),
    "index-number": (_map(x=3), "lists no files of weights"),
    "index-null-byte": (_map(x="a\0.safetensors"), "refusing to read it"),
    "index-empty": (_index({}), "lists no files of weights"),
    "index-a-list": (_index([]), "lists no files of weights"),
    "missing-shard": (_half, "b.safetensors is missing, though model.safetensors.index.json lists it"),
    "both-shards": (_twice, "both hold"),
    "bad-tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "is not a tokenizer.json of the tokenizers"),
}


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[Any, str]:
    """Exit code of `quest ...` and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["quest", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr().err


@pytest.fixture
def refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Check that `quest train --init-from ...` gives exit code 2, one sentence and no run folder; return the former."""

    def run(init_from: object, *words: object) -> str:
        (tmp_path / "short.yaml").write_text(yaml_of(settings(None)))
        config = ("--config", tmp_path / "short.yaml", "--out", tmp_path / "run")
        code, errors = run_command(monkeypatch, capsys, "train", *config, "--init-from", init_from, *words)
        assert (code, errors.count("\n")) == (2, 1), errors
        assert errors.startswith("quest: error: ")
        assert len(errors) < 700
        assert not (tmp_path / "run").exists()
        return errors

    return run


def yaml_of(config: RunConfig) -> str:
    """Settings as YAML without the section of the shape."""
    text = to_yaml(config)
    start = text.index("model:")
    return text[:start] + text[text.index("quant:") :]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD.keys())
def test_a_folder_that_cannot_be_used(
    damage: Callable[[Path], Any], words: str, theirs: Path, refused: Callable[..., str]
) -> None:
    damage(theirs)
    assert words in refused(theirs)


def test_a_name_on_the_hub_is_not_fetched(refused: Callable[..., str]) -> None:
    message = refused("some-org/some-llama")
    assert "init_from 'some-org/some-llama' is not a folder; give a Hugging Face folder on this machine" in message


def test_a_packed_model_is_refused(donor: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    pack(load_run(donor).model, tmp_path / "packed")
    assert "is a packed model, whose codes are not the weights to train" in refused(tmp_path / "packed")


@pytest.mark.parametrize("what", ["none", "damaged", "other-settings"])
def test_a_run_that_cannot_be_used(what: str, donor: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(donor, tmp_path / "donor")
    newest = latest_checkpoint(tmp_path / "donor" / "checkpoints")
    assert newest is not None
    if what == "none":
        shutil.rmtree(newest.parent)
        assert "has no checkpoint yet" in refused(tmp_path / "donor")
    elif what == "damaged":
        file = newest / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        assert "it is damaged" in refused(tmp_path / "donor")
    else:
        config = tmp_path / "donor" / "config.yaml"
        config.write_text(config.read_text().replace("rope_theta: 10000.0", "rope_theta: 20000.0"))
        assert "was made with model.rope_theta = 10000.0" in refused(tmp_path / "donor")


def test_a_preset_of_another_shape_is_refused(theirs: Path, refused: Callable[..., str]) -> None:
    message = refused(theirs, "--preset", "30m")
    assert "the settings say model.heads = 5" in message
    assert "has 4; leave model.heads out, and a preset too" in message


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_command_names_the_run_after_the_model_and_resumes(
    theirs: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--set", "train.seq_len=32", "--set", "train.batch_size=4", "--tokens", 128, "--data", corpus]
    code, errors = run_command(monkeypatch, capsys, "train", "--init-from", "theirs/", "--weight-bits", 3, *short)
    assert code == 0, errors
    run = Path("runs/theirs-quest-w3a4")
    assert RunFolder(run).read_config().init_from == "theirs"
    assert os.fspath(tmp_path) not in (run / "config.yaml").read_text().replace(str(corpus), "")
    code, errors = run_command(monkeypatch, capsys, "train", "--resume", run, "--init-from", "theirs")
    assert code == 0, errors
    code, errors = run_command(monkeypatch, capsys, "train", "--resume", run, "--init-from", "other")
    assert code == 2
    assert "init_from = 'theirs', but the settings now say 'other'" in errors
    code, errors = run_command(monkeypatch, capsys, "train", "--set", "init_from=theirs", *short)
    assert code == 0, errors
    assert Path("runs/theirs-quest-w4a4").is_dir()
