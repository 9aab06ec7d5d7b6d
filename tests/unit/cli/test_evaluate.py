"""`quest eval`: one model or a table of several, tasks, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.models import Llama

Command = Callable[..., tuple[int, str, str]]
SHAPE = ModelConfig(layers=1, hidden=16, heads=2, mlp_hidden=32, vocab_size=257)
ITEM = {"query": "Question: What is wet?", "choices": ["rain", "fire", "sand"], "gold": 0}


@pytest.fixture(scope="module")
def folder(tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packed models, a text of three documents and items of a task."""
    path = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        model = questlm.prepare(Llama(SHAPE).initialize(seed), QuantSpec())
        questlm.pack(model, path / f"model{seed}", tokenizer=tokenizer_json, training={"seq_len": 16})
    (path / "text.txt").write_text("<|endoftext|>\n".join(["one text\n", "another text\n", "the last text\n"]))
    (path / "arc_easy.jsonl").write_text("\n".join([json.dumps(ITEM)] * 4))
    return path


def test_one_model_has_a_table_of_its_own(folder: Path, command: Command) -> None:
    model, text = folder / "model0", folder / "text.txt"
    code, out, _ = command("eval", model, "--data", text, "--by-document", "--stride", 8)
    assert code == 0
    for words in ("validation loss", "perplexity", "bits per byte by document", "median", "of 3 documents"):
        assert words in " ".join(out.replace("│", " ").split()), out
    code, out, _ = command("eval", model, "--data", text, "--json")
    assert json.loads(out)["loss"] == pytest.approx(questlm.evaluate(model, text).loss)
    code, out, _ = command("eval", model, "--data", text, "--by-document", "--json")
    assert len(json.loads(out)[0]["documents"]) == 3


def test_several_models_share_a_table_and_a_file(folder: Path, command: Command, tmp_path: Path) -> None:
    models = [folder / "model0", folder / "model1"]
    words = ["--data", folder / "text.txt", "--tasks", "arc_easy", "--tasks-dir", folder, "--limit", 3]
    code, out, err = command("eval", *models, *words, "--out", "found.json")
    assert code == 0, err
    for part in ("loss in nats a token", "arc_easy, 3 items: percent right", "minus the first model", "acc_norm"):
        assert part in out
    content = json.loads((tmp_path / "found.json").read_text())
    assert [each["loss"]["tokens"] for each in content["models"]] == [content["models"][0]["loss"]["tokens"]] * 2
    scored = content["models"][1]["tasks"]["arc_easy"]
    assert scored["items"] == len(scored["nats"]) == 3
    assert content["differences"][0]["tasks"]["arc_easy"]["acc"]["value"] in (-1, 0, 1)  # three times the same item
    code, out, _ = command("eval", models[0], *words[2:], "--json")
    assert json.loads(out)[0]["tasks"]["arc_easy"]["nats"] == content["models"][0]["tasks"]["arc_easy"]["nats"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tasks", "hellaswag"],
            "needs the package 'lm_eval', which is not installed; run: pip install 'questlm[eval]'",
        ),
        (["--limit", "3"], "--tasks-dir and --limit are of tasks; name them, as in --tasks hellaswag"),
        (
            ["--tasks", "hellaswag", "--tasks-dir", "."],
            "has no items of hellaswag; it must hold one of: hellaswag.jsonl",
        ),
        (["--tasks", "arc", "--tasks-dir", "."], "there is no task 'arc'; tasks: hellaswag, lambada_openai"),
        (["--out", "absent/found.json"], "--out absent/found.json: there is no folder"),
        (["--out", "."], "--out . is a folder; name a file, such as --out losses.json"),
        (["--tasks", "arc_easy", "--tasks-dir", ".", "--stride", "8"], "--stride and --by-document are of a text"),
        (["--device", "abacus"], "abacus"),
        (
            ["--data", "text.txt", "--stride", "17"],
            "stride 17 cannot be used: it is at least 1 and at most the window of 16",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    words: list[str], message: str, folder: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("questlm.cli.evaluate.find_spec", lambda name: None)
    (tmp_path / "text.txt").write_text("some text to measure on, long enough")
    code, out, err = command("eval", folder / "model0", *words)
    assert (code, out) == (2, "")
    assert message in err
