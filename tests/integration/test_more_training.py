"""A run asked for a larger budget is not resumed, and the command that it names instead trains it on."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questlm.config import RunConfig, load_config, to_yaml
from questlm.errors import CheckpointError
from questlm.records import RunRecord
from questlm.training import resume, train

Settings = Callable[..., RunConfig]
Command = Callable[..., tuple[int, str, str]]
STEP = 4 * 32


def advised(errors: str) -> list[str]:
    """Words of the command at the end of an error."""
    assert errors.count("\n") == 1
    words = shlex.split(errors[errors.index("quest train") :])
    assert words[0] == "quest"
    return words[1:]


@pytest.mark.parametrize(
    ("quant", "begins_from_weights"),
    [
        ({"method": "quest", "weight_bits": 2, "act_bits": 8}, True),
        ({"method": "lsq", "weight_bits": 4, "act_bits": 4, "gradual": 0.5}, True),
        ({"method": "extra-rmsnorm", "weight_bits": "ternary", "act_bits": 8}, False),
    ],
)
def test_the_command_that_is_named_trains_on(
    quant: dict[str, Any], begins_from_weights: bool, tiny_settings: Settings, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "my runs" / "first"  # the command quotes it
    first = train(tiny_settings(quant=quant), run)
    code, _, errors = command("train", "--resume", run, "--tokens", 20 * STEP)
    assert code == 2
    assert f"follows a schedule over {12 * STEP:,} tokens, so it cannot be resumed for {20 * STEP:,} tokens" in errors
    words = advised(errors)
    assert ("--init-from" in words) == begins_from_weights
    code, _, errors = command(*words)
    assert code == 0, errors
    second = RunRecord.load(tmp_path / "my runs" / "first-2")
    assert second.steps == (8 if begins_from_weights else 20)
    assert (second.initial_weights is not None) == begins_from_weights
    sections = ("model", "quant", "train", "data")
    assert [second.config[name] for name in sections] == [first.config[name] for name in sections]
    assert RunRecord.load(run) == first


def test_it_works_from_another_folder_for_relative_data_a_tokenizer_and_a_beginning(
    corpus: Path, tiny_settings: Settings, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    (project / "a: text #1.txt").write_text(corpus.read_text())
    train(tiny_settings(data={"source": "a: text #1.txt"}), Path("donor"))
    (project / "tokenizer.json").write_text((project / "donor" / "tokenizer.json").read_text())
    settings = tiny_settings(data={"source": "a: text #1.txt", "tokenizer": "tokenizer.json"})
    (project / "settings.yaml").write_text(to_yaml(RunConfig(**settings.model_dump() | {"init_from": "donor"})))
    train(load_config(file=project / "settings.yaml"), Path("run"))
    monkeypatch.chdir(tmp_path)
    code, _, errors = command("train", "--resume", "project/run", "--tokens", 14 * STEP)
    assert code == 2
    words = advised(errors)
    code, _, errors = command(*words)
    assert code == 0, errors
    assert RunRecord.load(project / "run-2").steps == 2


def test_an_unfinished_run_is_told_the_same_and_a_smaller_budget_is_not_trained_on(
    tiny: RunConfig, tmp_path: Path
) -> None:
    train(tiny, tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    for tokens, expected in ((13 * STEP, f"--init-from .*--tokens {STEP} --out"), (STEP, "resume it without a budget")):
        wanted = RunConfig(**tiny.model_dump() | {"budget": {"tokens": tokens}})
        with pytest.raises(CheckpointError, match=expected):
            resume(tmp_path / "run", wanted)


@pytest.mark.parametrize(
    ("budget", "wanted", "expected"),
    [
        ({"tokens_per_param": 0.2}, {"tokens_per_param": 0.3}, "--tokens 1034 "),
        ({"seconds": 0.5}, {"seconds": 2.0}, "--seconds 1.5"),
        ({"tokens": 12 * STEP}, {"seconds": 3.0}, "--seconds 3 "),
    ],
)
def test_budgets_of_every_kind_are_added_to(
    budget: dict[str, Any], wanted: dict[str, Any], expected: str, tiny_settings: Settings, tmp_path: Path
) -> None:
    config = tiny_settings(budget=budget)
    train(config, tmp_path / "run")
    with pytest.raises(CheckpointError, match=expected):
        resume(tmp_path / "run", RunConfig(**config.model_dump() | {"budget": wanted}))
