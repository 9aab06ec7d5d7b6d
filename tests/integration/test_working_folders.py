"""A run finds its data from any working folder, and data are the same when their hash is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questlm.config import RunConfig, to_yaml
from questlm.data import train_tokenizer
from questlm.records import RunRecord
from questlm.training import RunFolder, load_run
from questlm.training.checkpoint import latest_checkpoint

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(
    tiny_settings: Callable[..., RunConfig], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a text and a run that was started there with relative paths for text, tokenizer and cache."""
    folder = tmp_path / "project"
    (folder / "books").mkdir(parents=True)
    shutil.copy(corpus, folder / "books" / "text.txt")
    train_tokenizer([corpus.read_text(encoding="utf-8")], 300).save(str(folder / "tokenizer.json"))
    data = {"source": "books", "tokenizer": "tokenizer.json", "cache_dir": "cache"}
    (folder / "tiny.yaml").write_text(to_yaml(tiny_settings(data=data)), encoding="utf-8")
    monkeypatch.setenv("QUESTLM_CACHE", str(tmp_path / "unused"))
    return folder


@pytest.fixture
def run(project: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    assert command("train", "--config", "tiny.yaml", "--out", "run")[0] == 0
    monkeypatch.chdir(project.parent)
    return project / "run"


def forget_the_end(run: Path) -> None:
    """Leave the run as if it had been killed at step 4 of 12."""
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    shutil.rmtree(newest)


def test_resume_eval_diagnose_and_pack_from_another_folder(run: Path, command: Command, tmp_path: Path) -> None:
    before = RunRecord.load(run).final
    for words in (
        ("eval", run),
        ("train", "--resume", run),
        ("diagnose", run, "--out", "seen"),
        ("pack", run, "--out", "model"),
    ):
        code, _, err = command(*words)
        assert (code, err.count("note:")) == (0, 0), err
    forget_the_end(run)
    assert command("train", "--resume", run)[0] == 0
    record = RunRecord.load(run)
    assert record.final == before
    assert record.config["data"]["source"] == "books"
    assert not (tmp_path / "unused").exists()


def test_the_same_data_under_an_absolute_path(run: Path, command: Command, project: Path) -> None:
    forget_the_end(run)
    code, _, err = command("train", "--resume", run, "--data", project / "books")
    assert code == 0, err
    assert RunFolder(run).read_config().data.source == "books"


def test_a_project_that_was_moved(run: Path, command: Command, project: Path, tmp_path: Path) -> None:
    project.rename(tmp_path / "renamed")
    code, _, err = command("eval", tmp_path / "renamed" / "run")
    assert (code, err.count("note:")) == (0, 0), err


def test_a_run_that_was_moved(run: Path, command: Command, tmp_path: Path) -> None:
    run.rename(tmp_path / "archived")
    code, _, err = command("eval", tmp_path / "archived")
    assert (code, err.count("note:")) == (0, 0), err


def test_a_run_that_was_moved_and_validates_on_a_file_beside_a_source_without_a_place(
    tiny_settings: Callable[..., RunConfig],
    command: Command,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = {"source": "stdlib", "val": "books", "tokenizer": "tokenizer.json", "cache_dir": str(tmp_path / "cache")}
    config = to_yaml(tiny_settings(data=data | {"max_tokens": 4000}))
    (project / "tiny.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(project)
    assert command("train", "--config", "tiny.yaml", "--out", "runs/of/text")[0] == 0
    monkeypatch.chdir(tmp_path)
    (project / "runs" / "of" / "text").rename(tmp_path / "archived")
    code, _, err = command("eval", "archived")
    assert (code, err.count("note:")) == (0, 0), err


def test_the_same_data_in_another_place(run: Path, command: Command, project: Path, tmp_path: Path) -> None:
    before = RunRecord.load(run).final
    (project / "books").rename(tmp_path / "moved")
    (project / "tokenizer.json").unlink()  # the run has its own copy
    forget_the_end(run)
    code, _, err = command("train", "--resume", run)
    assert code == 2
    assert "books' does not exist" in err
    code, _, err = command("train", "--resume", run, "--data", "moved")
    assert code == 0, err
    assert RunRecord.load(run).final == before
    assert RunFolder(run).read_config().data.source == str(tmp_path / "moved")
    code, _, err = command("eval", run)
    assert (code, err.count("note:")) == (0, 0), err
    load_run(run)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_other_data_are_refused(run: Path, command: Command, project: Path, checkpoints: bool) -> None:
    (project / "other.txt").write_text("something else\n" * 400)
    forget_the_end(run)
    if not checkpoints:
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").mkdir()
    settings = (run / "config.yaml").read_bytes()
    code, _, err = command("train", "--resume", run, "--data", project / "other.txt")
    assert code == 2
    assert "was trained on other data than" in err
    assert "other.txt' holds now" in err
    assert (run / "config.yaml").read_bytes() == settings


def test_an_initial_model_by_a_relative_path(run: Path, project: Path, command: Command, monkeypatch: Any) -> None:
    monkeypatch.chdir(project)
    words = (
        "--init-from",
        "run",
        "--data",
        "books",
        "--tokens",
        "512",
        "--set",
        "train.seq_len=32",
        "train.batch_size=4",
    )
    words = (*words[:-1], "--set", words[-1])
    assert command("train", *words, "--out", "second")[0] == 0
    shutil.rmtree(project / "second" / "checkpoints")
    (project / "second" / "checkpoints").mkdir()
    monkeypatch.chdir(project.parent)
    code, _, err = command("train", "--resume", project / "second")
    assert code == 0, err


def test_a_damaged_origin(run: Path, command: Command) -> None:
    for content in ("", "[]", '{"working_folder": 1, "data_hash": "x"}'):
        (run / "origin.json").write_text(content)
        code, _, err = command("eval", run)
        assert code == 2
        assert "origin.json" in err
