"""Tasks scored with models from folders: the model, the tokenizer and the longest input come from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import questlm
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ArtifactError, ConfigError
from questlm.evaluation.likelihood import Request, encode_pair, log_likelihoods
from questlm.export.hugging_face import to_hugging_face
from questlm.models import Llama
from questlm.trained.comparison import ModelResult, comparison_json, differences
from questlm.trained.opened import open_model
from questlm.trained.tasks import evaluate_tasks

SHAPE = ModelConfig(layers=1, hidden=16, heads=2, mlp_hidden=32, vocab_size=257)
ITEMS = {
    "hellaswag.jsonl": [
        {"query": "Baking: A man has flour. he", "choices": ["bakes bread.", "flies off.", "is a cat."], "gold": 0},
        {"query": "Diving: A woman is in the water. she", "choices": ["swims.", "burns down.", "sings."], "gold": 0},
    ],
    "lambada_openai.jsonl": [{"context": "He had lost his hat, so he looked for the", "continuation": "hat"}],
}


@pytest.fixture(scope="module")
def folder(tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items, a packed model of quantised weights, its Hugging Face export, and a packed model without a tokenizer."""
    path = tmp_path_factory.mktemp("tasks")
    for name, items in ITEMS.items():
        (path / name).write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    model = questlm.prepare(Llama(SHAPE).initialize(0), QuantSpec(weight_bits=4, act_bits=16))
    questlm.pack(model, path / "packed", tokenizer=tokenizer_json, training={"seq_len": 24})
    questlm.pack(model, path / "mute")
    to_hugging_face(load_artifact(path / "packed"), path / "theirs")
    return path


def test_models_of_every_kind_give_the_same_scores(folder: Path) -> None:
    ours = evaluate_tasks(folder / "packed", ["hellaswag", "lambada_openai"], folder)
    theirs = evaluate_tasks(folder / "theirs", ["hellaswag", "lambada_openai"], folder, seq_len=24)
    for name, result in ours.items():
        assert [len(each) for each in result.nats] == [len(each) for each in theirs[name].nats]
        for mine, other in zip(result.nats, theirs[name].nats, strict=True):
            assert mine == pytest.approx(other, abs=1e-3)
    assert len(evaluate_tasks(folder / "packed", ["hellaswag"], folder, limit=1)["hellaswag"].nats) == 1
    longer = evaluate_tasks(folder / "packed", ["lambada_openai"], folder, seq_len=100)["lambada_openai"]
    assert longer.nats != ours["lambada_openai"].nats  # more than 24 tokens come before the last word


def test_the_longest_input_is_that_of_training_or_of_the_config(folder: Path) -> None:
    opened = open_model(folder / "packed")
    assert (opened.longest, opened.end_of_text, opened.vocab_size) == (24, 0, 257)
    assert open_model(folder / "theirs").longest == 2048
    assert open_model(folder / "mute").longest == 2048
    pair = encode_pair(questlm.load(folder / "packed").encode, opened.end_of_text, "", " hat")
    nats = log_likelihoods(opened.model, [Request(*map(tuple, pair))], 24, 257)[0].nats
    assert nats == pytest.approx(-4 * 5.55, rel=0.1)  # 257 equally likely bytes


def test_what_cannot_be_scored_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mute has no tokenizer"):
        evaluate_tasks(folder / "mute", ["hellaswag"], folder)
    with pytest.raises(ArtifactError, match="is not a folder"):
        evaluate_tasks(tmp_path / "absent", ["hellaswag"], folder)


def test_several_models_are_compared_with_the_first(folder: Path) -> None:
    results = [
        ModelResult(name, None, evaluate_tasks(folder / name, ["hellaswag"], folder)) for name in ("packed", "theirs")
    ]
    (found,) = differences(results)
    assert found["hellaswag"]["acc"].value == 0
    content = json.loads(json.dumps(comparison_json(results, "a device")))
    assert [each["model"] for each in content["models"]] == ["packed", "theirs"]
    assert content["models"][0]["tasks"]["hellaswag"]["items"] == 2
    (against,) = content["differences"]
    assert (against["model"], against["minus"]) == ("theirs", "packed")
    assert set(against["tasks"]["hellaswag"]["acc"]) == {"value", "low", "high"}
