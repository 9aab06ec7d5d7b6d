"""How a run folder begins: what may stand in its place, what a failed start leaves, and two starts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from questlm.config import RunConfig
from questlm.errors import CheckpointError, ConfigError, QuestError, TrainingError
from questlm.training import RunFolder, Trainer, new_folder, resume, start, train
from questlm.training import run as run_module
from questlm.training.new_folder import begin_folder
from questlm.training.origin import Origin


def _fails(*_arguments: Any) -> None:
    raise TrainingError("quantisation is not in effect")


def _killed(*_arguments: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def started(tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed before its first step."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", _killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("moment", [(start, "_distribute"), (Trainer, "_step")], ids=["start", "step"])
def test_a_start_that_fails_leaves_nothing_and_the_next_one_works(
    moment: tuple[Any, str], tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(*moment, _fails)
        with pytest.raises(TrainingError):
            train(tiny, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert train(tiny, tmp_path / "run").steps == 12


def test_a_start_that_fails_keeps_what_a_logger_wrote_and_the_next_one_takes_the_folder(
    tiny_settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_settings(train={"loggers": ["tensorboard"]})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", _fails)
        with pytest.raises(TrainingError):
            train(config, tmp_path / "run")
    (log,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert train(config, tmp_path / "run").steps == 12
    assert not log.exists()


def test_a_run_that_fails_later_keeps_its_checkpoint(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", _fails)
        with pytest.raises(TrainingError):
            train(tiny, tmp_path / "run")
    with pytest.raises(ConfigError, match="run exists already; continue that run with `quest train --resume"):
        train(tiny, tmp_path / "run")
    assert resume(tmp_path / "run").final is not None


def test_a_start_that_was_killed_is_begun_again_by_either_command(
    started: Path, tiny_settings: Callable[..., RunConfig]
) -> None:
    other = tiny_settings(train={"lr": 2e-2})
    assert train(other, started).config["train"]["lr"] == 2e-2


def test_a_start_that_was_killed_is_resumed(started: Path) -> None:
    assert resume(started).steps == 12


def test_a_start_that_was_killed_is_not_taken_if_something_else_lies_in_it(started: Path, tiny: RunConfig) -> None:
    (started / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        train(tiny, started)
    assert (started / "notes.txt").exists()


@pytest.mark.parametrize("quicker", ["still-there", "failed", "saved"])
def test_of_two_starts_in_one_folder_the_second_hears_of_the_first(
    quicker: str, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    prepare, trained = run_module.prepare_data, []
    with ExitStack() as other:

        def prepare_slowly(*arguments: Any) -> Any:
            """The other process makes the folder while this one prepares its data."""
            if not trained:
                trained.append(run)
                other.enter_context(begin_folder(RunFolder(run), tiny, None, Origin.here(run, None)))
                if quicker == "saved":
                    (run / "checkpoints" / "step-00000004").mkdir()
                if quicker != "still-there":
                    other.close()
            return prepare(*arguments)

        monkeypatch.setattr(run_module, "prepare_data", prepare_slowly)
        if quicker == "failed":
            assert train(tiny, run).steps == 12
            return
        expected = "another process is training in" if quicker == "still-there" else "exists already; continue that run"
        with pytest.raises(QuestError, match=expected) as caught:
            train(tiny, run)
        assert "free some space" not in str(caught.value)
        assert (run / "config.yaml").exists()


def test_a_folder_that_appears_in_the_last_moment_is_not_called_a_full_disk(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def quicker(self: RunFolder) -> None:
        other.enter_context(begun(self))

    def begun(folder: RunFolder) -> Any:
        monkeypatch.undo()
        return begin_folder(folder, tiny, None, Origin.here(run, None))

    with ExitStack() as other:
        monkeypatch.setattr(new_folder, "_remove_unsaved", quicker)
        with (
            pytest.raises(CheckpointError, match="another process is training in"),
            begin_folder(RunFolder(run), tiny, None, Origin.here(run, None)),
        ):
            pass
    assert run.is_dir()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    yield tmp_path


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("file", "file exists already and is not a folder; name another folder with --out"),
        ("file/run", "run cannot be made, because .*/file is not a folder; name another folder with --out"),
        ("folder", "folder exists already and holds 'mine'; name another folder with --out"),
        ("link", "link exists already and is a link; name another folder with --out"),
    ],
)
def test_what_stands_in_the_place_of_a_run_folder_is_named(
    out: str, expected: str, places: Path, tiny: RunConfig
) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        train(tiny, places / out)
    assert "--resume" not in str(caught.value)


def test_an_empty_folder_will_do(places: Path, tiny: RunConfig) -> None:
    assert train(tiny, places / "empty").steps == 12
