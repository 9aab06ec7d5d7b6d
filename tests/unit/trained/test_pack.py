"""`questlm.pack` takes a run as it is, or a model with what goes with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import questlm
from questlm.artifact.budget import Budget
from questlm.config import RunConfig
from questlm.errors import ArtifactError, CheckpointError, ConfigError
from questlm.records import RunRecord
from questlm.training import load_run, train


@pytest.fixture(scope="module")
def run(tiny_settings: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_settings(), path)
    return path


def test_a_run_brings_its_tokenizer_and_record(run: Path, tmp_path: Path) -> None:
    report = questlm.pack(str(run), tmp_path / "packed", embeddings="int8")
    packed = questlm.load(tmp_path / "packed")
    assert packed.bytes == report.bytes
    assert packed.tokenizer is not None
    assert (
        packed.encode("the quick fox") == Tokenizer.from_file(str(run / "tokenizer.json")).encode("the quick fox").ids
    )
    assert packed.training["final"] == RunRecord.load(run).final
    assert packed.training["seq_len"] == 32
    assert "cache_dir" not in packed.training["data"]


def test_a_run_and_its_model_give_the_same_tensors(run: Path, tmp_path: Path) -> None:
    questlm.pack(run, tmp_path / "run")
    questlm.pack(load_run(run).model, tmp_path / "model")
    tensors = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "model")]
    assert tensors[0] == tensors[1]


def test_what_a_run_brings_cannot_be_given(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="brings its own tokenizer"):
        questlm.pack(run, tmp_path / "packed", tokenizer="{}")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        questlm.pack(tmp_path, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_run_folder_is_no_artifact(run: Path) -> None:
    with pytest.raises(ArtifactError, match="is a run folder, not an artifact; pack it first: quest pack"):
        questlm.load(run)


def test_a_run_above_its_budget_is_told_settings_that_fit(run: Path, tmp_path: Path) -> None:
    size = questlm.pack(run, tmp_path / "whole.quest", single_file=True, tokenizer="").bytes
    with pytest.raises(ConfigError, match=r" 50 more than.*it would fit with any one of: .*quant.embeddings="):
        questlm.pack(run, tmp_path / "model.quest", single_file=True, tokenizer="", budget=size - 50)
    with pytest.raises(ConfigError, match=r"No one setting would do. Without training, try --single-file"):
        questlm.pack(run, tmp_path / "folder", tokenizer="", budget=100)
    (tmp_path / "code.py").write_bytes(b"x" * 200)
    budget = Budget.of_files(200, [tmp_path / "code.py"])
    with pytest.raises(ConfigError, match="The counted files alone take the whole budget"):
        questlm.pack(run, tmp_path / "model.quest", single_file=True, budget=budget)
