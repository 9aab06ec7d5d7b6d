"""A run that is too large is rounded anew until it fits, and what is said of it was measured on the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import questlm
from questlm.artifact.budget import Budget
from questlm.config import RunConfig
from questlm.data import prepare
from questlm.errors import ConfigError
from questlm.evaluation import evaluate
from questlm.trained.fit_bytes import fit_to_budget
from questlm.training import RunFolder, train

SHAPE = {"layers": 1, "hidden": 64, "heads": 1, "mlp_hidden": 128, "tied_head": True}


@pytest.fixture(scope="module")
def run(tiny_settings: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    quant = {"weight_bits": 4, "act_bits": 16, "embeddings": "int6", "steps": "fp16"}
    train(tiny_settings(model=SHAPE, quant=quant), path)
    return path


def test_the_kept_file_meets_the_budget_and_has_the_loss_that_is_told(run: Path, tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_bytes(b"x" * 100)
    size = questlm.pack(run, tmp_path / "whole.quest", single_file=True, tokenizer="").bytes
    limit = round(0.8 * size)
    budget = Budget.of_files(limit + 100, [code])
    found = fit_to_budget(run, tmp_path / "fit.quest", budget, seconds=1e-3, with_tokenizer=False)
    assert (tmp_path / "fit.quest").stat().st_size == found.packed.bytes == found.kept.bytes <= limit
    assert found.kept.bytes > 0.9 * limit
    assert (found.probed, found.matrices) == (1, 8)
    trained, *smaller = found.points
    assert (trained.bytes, trained.choices) == (size, {})
    assert found.kept in smaller
    assert found.kept.loss == min(point.loss for point in found.points if point.bytes <= limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code.py", "fit.quest", "whole.quest"]
    val = prepare(RunFolder(run).data_settings(), None).val
    logits = questlm.load(tmp_path / "fit.quest").logits
    again = evaluate(logits, val, 32, max_tokens=found.tokens, show_progress=False)
    assert again.loss == pytest.approx(found.kept.loss, abs=1e-6)


def test_what_cannot_be_met_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bytes at the least, but 2,000 are left"):
        fit_to_budget(run, tmp_path / "fit.quest", 2000, seconds=1e-3, with_tokenizer=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="exists already"):
        fit_to_budget(run, run, 2000)


@pytest.mark.parametrize("option", ["--compare", "--license=mit"])
def test_an_option_that_fitting_does_not_follow_is_refused(
    option: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = command("pack", "run", "--single-file", "f.quest", "--budget", "1MB", "--fit", option)
    assert (code, "goes without" in " ".join(err.split())) == (2, True), err
