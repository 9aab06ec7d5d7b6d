"""Our models in lm-evaluation-harness give the scores of our own scorer, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import questlm
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError, DataError
from questlm.export.hugging_face import to_hugging_face
from questlm.models import Llama
from questlm.trained.tasks import evaluate_tasks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness brings 45 packages: pip install 'questlm[eval]'")

from lm_eval import simple_evaluate

from questlm.integrations.lm_eval import QuestlmLM, harness_results, local_task

SHAPE = ModelConfig(layers=1, hidden=16, heads=2, mlp_hidden=32, vocab_size=257)
CHOICES = [
    {"query": "Question: What is wet?", "choices": ["rain", "a fire", "sand"], "gold": 0},
    {"query": "Question: What flies?", "choices": ["a stone", "a bird"], "gold": 1},
    {"query": "Question: Who bakes bread, for hours and hours?", "choices": ["bakers", "a cat"], "gold": 0},
]
WORDS = [{"context": "He had lost his hat, so he looked for the", "continuation": "hat"}]
ITEMS = {"arc_easy": CHOICES, "hellaswag": CHOICES, "lambada_openai": WORDS}


@pytest.fixture(scope="module")
def folder(tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items, a packed model, and its export for the harness's own class."""
    path = tmp_path_factory.mktemp("harness")
    for name, items in ITEMS.items():
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    model = questlm.prepare(Llama(SHAPE).initialize(0), QuantSpec(weight_bits=4, act_bits=16))
    questlm.pack(model, path / "packed", tokenizer=tokenizer_json, training={"seq_len": 40})
    to_hugging_face(load_artifact(path / "packed"), path / "theirs")
    return path


def tasks(folder: Path) -> list[str | dict[str, Any]]:
    return [local_task(name, folder / f"{name}.jsonl", folder / "cache") for name in ITEMS]


def test_the_harness_and_our_scorer_agree_item_by_item(folder: Path) -> None:
    ours = evaluate_tasks(folder / "packed", list(ITEMS), folder)
    found = harness_results(folder / "packed", tasks(folder), device="cpu")
    for name, result in ours.items():
        for mine, other in zip(result.nats, found[name].nats, strict=True):
            assert mine == pytest.approx(other, abs=1e-4)
        assert {measure: flags.tolist() for measure, flags in result.correct.items()} == {
            measure: flags.tolist() for measure, flags in found[name].correct.items()
        }
        assert result.perplexity == pytest.approx(found[name].perplexity)


def test_the_harness_own_class_gives_the_same_log_probabilities(folder: Path) -> None:
    settings = {"pretrained": str(folder / "theirs"), "dtype": "float32", "max_length": 40}
    found = simple_evaluate("hf", settings, tasks=tasks(folder), device="cpu", batch_size=1, bootstrap_iters=0)
    for name, result in evaluate_tasks(folder / "packed", list(ITEMS), folder).items():
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        for mine, sample in zip(result.nats, samples, strict=True):
            assert mine == pytest.approx([nats for nats, _ in sample["filtered_resps"]], abs=1e-3)


def test_whole_texts_and_generated_ones(folder: Path) -> None:
    model = QuestlmLM(str(folder / "packed"), device="cpu")
    text = "a text that is longer than forty tokens, of a byte each, to be read in windows"
    (nats,) = model.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    assert nats == pytest.approx(-5.55 * len(text), rel=0.02)  # 257 equally likely bytes
    asked = SimpleNamespace(args=("He had lost", {"until": ["never"], "max_gen_toks": 5}))
    options = questlm.GenerationOptions(max_new_tokens=5, temperature=0)
    engine = questlm.load(folder / "packed")
    assert model.generate_until([asked]) == [engine.generate("He had lost", options)]
    drawn = {"until": ["never"], "max_gen_toks": 5, "do_sample": True, "temperature": 9.0, "top_k": 1}
    assert model.generate_until([SimpleNamespace(args=("He had lost", drawn))]) == model.generate_until([asked])
    with pytest.raises(ConfigError, match="256 new tokens leave no room for a text: the model reads 40 at once"):
        model.generate_until([SimpleNamespace(args=("He had lost", {"until": ["never"]}))])


def test_a_model_without_a_tokenizer_is_refused(folder: Path) -> None:
    questlm.pack(questlm.prepare(Llama(SHAPE).initialize(0), QuantSpec()), folder / "mute")
    with pytest.raises(ConfigError, match="mute has no tokenizer"):
        QuestlmLM(str(folder / "mute"))
    with pytest.raises(ConfigError, match="cache_dtype = 'int4'; allowed: float32, bfloat16, int8"):
        QuestlmLM(str(folder / "packed"), cache_dtype="int4")
    with pytest.raises(ConfigError, match=r"has no task 'hellaswagg'.*Did you mean 'hellaswag'"):
        harness_results(folder / "packed", ["hellaswagg"])


def test_items_that_cannot_be_fetched_are_named_with_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("lm_eval.simple_evaluate", unreachable)
    with pytest.raises(DataError, match=r"no route to the hub.*--tasks-dir"):
        harness_results(folder / "packed", ["hellaswag"], device="cpu")
