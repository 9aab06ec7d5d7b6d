"""One function measures a run, a packed model and a model in memory, and they agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import questlm
from questlm.artifact.dense import dense_state_dict
from questlm.artifact.format import FORMAT, VERSION
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec, RunConfig
from questlm.errors import ArtifactError, ConfigError
from questlm.export.hugging_face import to_hugging_face
from questlm.export.plain import plain_logits
from questlm.manifest import write_manifest
from questlm.models import Llama
from questlm.records import RunRecord
from questlm.trained.evaluate import evaluate_beside
from questlm.training import load_run, train

Settings = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def run(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_settings(), path)
    questlm.pack(path, path / "packed")
    questlm.pack(path, path / "model.quest", single_file=True)
    return path


@pytest.mark.parametrize("folder", ["", "packed", "model.quest"])
def test_a_run_or_packed_model_is_measured_on_the_validation_split_of_its_training(folder: str, run: Path) -> None:
    final = RunRecord.load(run).final
    assert final is not None
    result = questlm.evaluate(run / folder)
    assert result.trained_loss == final["loss"]
    assert result.gap is not None
    assert abs(result.gap) < 1e-5
    assert result.tokens == final["tokens"]
    assert set(result.as_dict()) == set(final)


def test_the_loss_with_rounded_keys_and_values_is_that_of_generation_with_them(run: Path) -> None:
    exact = questlm.evaluate(run / "packed").loss
    assert questlm.evaluate(run / "packed", cache_dtype=torch.float32).loss == exact
    for cache_dtype in (torch.bfloat16, torch.int8):
        loss = questlm.evaluate(run / "packed", cache_dtype=cache_dtype).loss
        assert loss == pytest.approx(exact, abs=0.05) and loss != exact
    with pytest.raises(ConfigError, match=r"the run .* is measured without a cache"):
        questlm.evaluate(run, cache_dtype=torch.int8)
    with pytest.raises(ConfigError, match="a model in memory is measured without a cache"):
        questlm.evaluate(questlm.load(run / "packed"), "text.txt", cache_dtype=torch.int8)


def test_windows_that_overlap_give_each_token_more_context(run: Path) -> None:
    plain = questlm.evaluate(run)
    by_document = questlm.evaluate(run, by_document=True)
    assert by_document.as_dict() == pytest.approx(plain.as_dict(), rel=1e-6)
    assert by_document.trained_loss == plain.trained_loss
    documents = by_document.documents
    assert len(documents) > 1
    # All tokens but the first of the text and the ends of documents, and all their bytes.
    bits = sum(each.bits_per_byte * each.bytes for each in documents)
    assert bits / sum(each.bytes for each in documents) == pytest.approx(plain.text_bits_per_byte, rel=1e-6)
    assert plain.tokens - len(documents) <= sum(each.tokens for each in documents) < plain.tokens
    overlapping = questlm.evaluate(run / "packed", stride=8)
    assert overlapping.loss < plain.loss
    assert (overlapping.trained_loss, overlapping.documents) == (None, ())
    assert questlm.evaluate(run, seq_len=16).loss > plain.loss


def test_a_hugging_face_folder_is_measured_as_its_weights_compute(run: Path, tmp_path: Path) -> None:
    artifact = load_artifact(run / "packed")
    to_hugging_face(artifact, tmp_path / "theirs")
    (tmp_path / "text.txt").write_text("seven wizards quietly bake cakes\n" * 40, encoding="utf-8")
    _, expected = evaluate_beside(
        run / "packed", plain_logits(artifact, dense_state_dict(artifact)), tmp_path / "text.txt"
    )
    found = questlm.evaluate(tmp_path / "theirs", tmp_path / "text.txt", seq_len=32)
    assert found.as_dict() == pytest.approx(expected.as_dict(), rel=1e-6)
    with pytest.raises(ConfigError, match="does not say what it was validated on; name a text with --data"):
        questlm.evaluate(tmp_path / "theirs")
    with pytest.raises(ConfigError, match=r"the Hugging Face model .* is measured without a cache"):
        questlm.evaluate(tmp_path / "theirs", cache_dtype=torch.int8)
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"the model has no tokenizer, so .* cannot be made tokens"):
        questlm.evaluate(tmp_path / "theirs", tmp_path / "text.txt")


def test_models_in_memory_and_their_folders_agree_on_other_text(run: Path, tmp_path: Path) -> None:
    text, tokenizer = tmp_path / "text.txt", run / "tokenizer.json"
    text.write_text("seven wizards quietly bake cakes while the quick brown fox jumps.\n" * 40, encoding="utf-8")
    of_run = questlm.evaluate(str(run), text)
    assert of_run.trained_loss is None
    assert of_run.gap is None
    loaded = load_run(run)
    results = [
        questlm.evaluate(run / "packed", text),
        questlm.evaluate(loaded.model, text, tokenizer=tokenizer, seq_len=loaded.config.train.seq_len),
        questlm.evaluate(questlm.load(run / "packed"), str(text), tokenizer=str(tokenizer), seq_len=32),
    ]
    for result in results:
        assert result.loss == pytest.approx(of_run.loss, abs=1e-5)
        assert result.bits_per_byte == pytest.approx(of_run.bits_per_byte, abs=1e-5)
        assert result.tokens == of_run.tokens


def test_what_is_missing_or_too_much_is_said(run: Path, tmp_path: Path) -> None:
    model = load_run(run).model
    with pytest.raises(ConfigError, match="give data='TEXT'"):
        questlm.evaluate(model)
    (tmp_path / "text.txt").write_text("a text", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"give tokenizer='PATH' of the model's tokenizer\.json"):
        questlm.evaluate(model, tmp_path / "text.txt")
    with pytest.raises(ConfigError, match="brings its own tokenizer"):
        questlm.evaluate(run, tokenizer=run / "tokenizer.json")
    with pytest.raises(ConfigError, match="stride 40 cannot be used: it is at least 1 and at most the window of 32"):
        questlm.evaluate(run, stride=40)
    with pytest.raises(ArtifactError, match="is not a folder"):
        questlm.evaluate(tmp_path / "absent")


@pytest.fixture
def evaluable(tmp_path: Path, tokenizer_json: str) -> tuple[Path, str]:
    """An artifact with a tokenizer, and a text to evaluate it on."""
    shape = ModelConfig(layers=1, hidden=16, heads=2, mlp_hidden=32, vocab_size=257)
    model = questlm.prepare(Llama(shape).initialize(0), QuantSpec(embeddings="bf16"))
    questlm.pack(model, tmp_path / "a", tokenizer=tokenizer_json, training={"seq_len": 16})
    (tmp_path / "text.txt").write_text("a text to measure the loss on " * 20)
    return tmp_path / "a", str(tmp_path / "text.txt")


@pytest.mark.parametrize("length", ["x", True, 0, -1, 1, 2.5, 2**40, 10**400, [], {}, None])
def test_a_training_with_windows_that_none_can_have_is_refused(evaluable: tuple[Path, str], length: Any) -> None:
    folder, text = evaluable
    config = json.loads((folder / "config.json").read_text())
    config["training"]["seq_len"] = length
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder, FORMAT, VERSION)
    with pytest.raises(ArtifactError, match="says nonsense of its training"):
        questlm.evaluate(folder, text)


def test_a_model_whose_loss_is_not_finite_is_refused(evaluable: tuple[Path, str]) -> None:
    folder, text = evaluable
    assert questlm.evaluate(folder, text).loss < 10
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"].fill_(3e38)
    save_file(tensors, path)
    write_manifest(folder, FORMAT, VERSION)
    with pytest.raises(ArtifactError, match="its weights are out of any sensible range"):
        questlm.evaluate(folder, text)
