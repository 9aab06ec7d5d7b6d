"""The file by which other programs see how far a run is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from questlm.config import RunConfig
from questlm.records import RunProgress
from questlm.training import Trainer, progress_file, resume, train


def _watch(monkeypatch: pytest.MonkeyPatch, run: Path) -> list[RunProgress | None]:
    """What `progress.json` says before each step from now on."""
    original, seen = Trainer._step, []

    def step(self: Trainer, done: float) -> None:
        seen.append(RunProgress.load(run))
        original(self, done)

    monkeypatch.setattr(Trainer, "_step", step)
    return seen


def test_it_is_there_while_a_run_trains_and_gone_afterwards(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_LINES", 0.0)
    seen = _watch(monkeypatch, tmp_path / "run")
    record = train(tiny, tmp_path / "run")
    assert [round(12 * each.share) for each in seen if each] == list(range(12))
    assert seen[0] == RunProgress(0.0)
    last = seen[-1]
    assert last is not None and last.loss is not None and last.loss < record.curve[0]["loss"]
    assert last.tokens_per_second is not None and last.seconds_left is not None
    assert not (tmp_path / "run" / "progress.json").exists()
    assert resume(tmp_path / "run") == record


def test_it_is_renewed_no_more_often_than_a_line_of_progress(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_LINES", 1e6)
    seen = _watch(monkeypatch, tmp_path / "run")
    train(tiny, tmp_path / "run")
    assert seen == [RunProgress(0.0)] * 12


def test_a_budget_in_seconds_is_never_more_than_spent(
    tiny_settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_LINES", 0.0)
    saved: list[RunProgress] = []
    monkeypatch.setattr(RunProgress, "save", lambda self, run: saved.append(self))
    train(tiny_settings(budget={"seconds": 1e-6}), tmp_path / "run")  # which one step exceeds
    assert [each.share for each in saved] == [0.0, 1.0]
    assert saved[-1].seconds_left == 0.0


def test_a_resumed_run_first_removes_what_a_killed_one_left_of_it(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_LINES", 0.0)
    train(tiny, tmp_path / "run")
    RunProgress(0.5).save(tmp_path / "run")  # a kill leaves it
    resume(tmp_path / "run")
    assert not (tmp_path / "run" / "progress.json").exists()


def test_what_a_killed_run_left_of_it_does_not_keep_the_run_from_beginning_again(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Trainer, done: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_step", killed)
        train(tiny, tmp_path / "run")
    RunProgress(0.5).save(tmp_path / "run")  # a kill leaves it, an exception does not
    (tmp_path / "run" / ".tmp-questlm-0123456789abcdef").touch()  # a kill while it is being written
    assert train(tiny, tmp_path / "run").steps == 12
    assert not (tmp_path / "run" / "progress.json").exists()
