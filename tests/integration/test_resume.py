"""A run stopped at any moment and resumed ends exactly where an uninterrupted run ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from helpers.processes import Command, kill_in
from questlm.config import RunConfig, to_yaml
from questlm.errors import CheckpointError
from questlm.records import RunRecord
from questlm.training import Trainer, resume, train
from questlm.training.checkpoint import latest_checkpoint
from questlm.training.recorder import Recorder
from questlm.training.state import TrainingState

Settings = Callable[..., RunConfig]


def _outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, float]], dict[str, float | None] | None]:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    tensors = {name: t.numpy().tobytes() for name, t in load_file(newest / "model.safetensors").items()}
    record = RunRecord.load(run)
    return tensors, record.curve, record.final


def _start(config_file: Path, run: Path, *, fresh: bool, killed_in: str = "") -> Command:
    # Once the run folder exists, going on is `--resume`.
    how = ["--config", str(config_file), "--out", str(run)] if fresh else ["--resume", str(run)]
    before = partial(kill_in, killed_in) if killed_in else None
    return Command("train", *how, folder=config_file.parent, before=before)


@pytest.fixture(scope="module")
def long_settings(tiny_settings: Settings) -> RunConfig:
    return tiny_settings(train={"checkpoint_every": 5, "log_every": 7}, budget={"tokens": 150 * 4 * 32})


@pytest.fixture(scope="module")
def uninterrupted(long_settings: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "settings.yaml").write_text(to_yaml(long_settings))
    process = _start(folder / "settings.yaml", folder / "run", fresh=True)
    errors = process.errors(timeout=200)
    assert process.returncode == 0, errors
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_bit_identical(
    seed: int, long_settings: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    draw, run = random.Random(seed), tmp_path / "run"
    (tmp_path / "settings.yaml").write_text(to_yaml(long_settings))
    richest: RunRecord | None = None
    for kills in range(3):
        process = _start(tmp_path / "settings.yaml", run, fresh=not (run / "config.yaml").exists())
        deadline = time.monotonic() + 60
        target = draw.randrange(kills * 40 + 1, kills * 40 + 40)
        while process.returncode is None and time.monotonic() < deadline and _steps_saved(run) < target:
            time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        richest = _require_no_poorer(run, richest)
    process = _start(tmp_path / "settings.yaml", run, fresh=not (run / "config.yaml").exists())
    errors = process.errors(timeout=200)
    assert process.returncode == 0, errors
    assert _outcome(run) == _outcome(uninterrupted)
    _require_tidy(tmp_path)

    record = (run / "record.json").read_bytes()
    process = _start(tmp_path / "settings.yaml", run, fresh=False)  # of the finished run
    time.sleep(draw.uniform(0.0, 5.0))
    process.kill()
    assert (run / "record.json").read_bytes() == record


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["config.yaml", "model.safetensors", "record.json"])
def test_what_a_kill_leaves_half_written_is_gone_after_the_next_start(
    moment: str, long_settings: RunConfig, tmp_path: Path
) -> None:
    """Killed while it makes the run folder, writes its second checkpoint, or replaces its record."""
    run = tmp_path / "run"
    (tmp_path / "settings.yaml").write_text(to_yaml(long_settings))
    process = _start(tmp_path / "settings.yaml", run, fresh=True, killed_in=moment)
    errors = process.errors(timeout=100)
    assert process.returncode == -signal.SIGKILL, errors
    assert list(tmp_path.rglob(".tmp-*"))
    process = _start(tmp_path / "settings.yaml", run, fresh=not (run / "config.yaml").exists())
    errors = process.errors(timeout=200)
    assert process.returncode == 0, errors
    _require_tidy(tmp_path)


def _require_no_poorer(run: Path, richest: RunRecord | None) -> RunRecord | None:
    """The record of a run, which must not be poorer than the richest so far."""
    if not (run / "record.json").exists():
        assert richest is None
        return None
    record = RunRecord.load(run)
    assert richest is None or not record.is_poorer_than(richest)
    return record


def _require_tidy(folder: Path) -> None:
    """No temporary files, in the cache neither, and permissions as the umask gives them."""
    cache = Path(os.environ["QUESTLM_CACHE"])
    assert not [path for place in (folder, cache) for path in place.rglob(".tmp-*")]
    (folder / "probe").touch()
    ordinary = (folder / "probe").stat().st_mode
    odd = {path: path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert set(odd.values()) == {ordinary}, odd


def _steps_saved(run: Path) -> int:
    newest = latest_checkpoint(run / "checkpoints")
    return int(newest.name.removeprefix("step-")) if newest else 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 5)])
def test_signals_save_and_exit_cleanly(
    number: signal.Signals, times: int, long_settings: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (tmp_path / "settings.yaml").write_text(to_yaml(long_settings))
    process = _start(tmp_path / "settings.yaml", run, fresh=True)
    while process.returncode is None and _steps_saved(run) < 5:
        time.sleep(0.01)
    for _ in range(times):  # five are those of a key held down
        process.send_signal(number)
        time.sleep(0.02)
    errors = process.errors(timeout=100)
    # A signal after the run is saved ends the process, which is 128 + number to a shell, too.
    assert process.returncode in ((128 + number,) if times == 1 else (128 + number, -number)), errors
    assert errors.count("the run stops after this step and is saved") == 1
    assert "quest train --resume" in errors
    assert "Traceback" not in errors
    process = _start(tmp_path / "settings.yaml", run, fresh=False)
    errors = process.errors(timeout=200)
    assert process.returncode == 0, errors
    assert _outcome(run) == _outcome(uninterrupted)


def _written(run: Path) -> dict[str, tuple[int, int]]:
    """Every file of a run, with what tells whether it was written again."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in run.rglob("*.*") if path.name != ".lock"
    }


def test_a_finished_run_can_be_resumed_and_nothing_of_it_is_computed_or_written(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = train(tiny, tmp_path / "run")
    before = _written(tmp_path / "run")
    monkeypatch.delattr(Trainer, "train")
    assert resume(tmp_path / "run") == record
    assert _written(tmp_path / "run") == before


def test_a_finished_run_needs_its_data_no_more(tiny_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("wizards bake lazy dogs and brown foxes quietly\n" * 200)
    record = train(tiny_settings(data={"source": str(tmp_path / "text.txt")}), tmp_path / "run")
    (tmp_path / "text.txt").unlink()
    assert resume(tmp_path / "run") == record


@pytest.mark.parametrize("moment", [(Recorder, "save"), (Trainer, "_finish")], ids=["record", "finish"])
def test_final_metrics_survive_a_kill_while_a_run_trains_its_end_again(
    moment: tuple[type, str], tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    record = train(tiny, run)
    shutil.rmtree(run / "checkpoints" / "step-00000012")  # its weights are lost, for example to save space
    original = getattr(*moment)

    def killed(self: object, *arguments: Any) -> Any:
        if moment == (Recorder, "save"):
            original(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*moment, killed)
        with pytest.raises(KeyboardInterrupt):
            resume(run)
    assert RunRecord.load(run) == record
    assert resume(run).final == record.final


def test_a_run_resumed_from_an_older_checkpoint_keeps_the_longer_record_until_it_is_there_again(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    _stopped_after(8, tiny, run, monkeypatch)
    record = RunRecord.load(run)
    assert (record.steps, record.final) == (8, None)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "restore", lambda self: None)  # as if no checkpoint were good
        _stopped_after(4, tiny, run, patch, start=lambda: resume(run))
    assert RunRecord.load(run) == record


def test_the_record_keeps_what_was_checked_at_the_start(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny, tmp_path / "whole")
    run = tmp_path / "run"
    _stopped_after(4, tiny, run, monkeypatch)
    (run / "record.json").unlink()  # killed between the first checkpoint and the first record
    assert resume(run).checks == whole.checks


def _stopped_after(
    step: int,
    config: RunConfig,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[[], object] | None = None,
) -> None:
    """Train, or whatever `start` does, until the checkpoint of `step` is there."""
    original = Trainer._save

    def save(self: Trainer) -> None:
        original(self)
        if self.state.counters.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", save)
        with pytest.raises(KeyboardInterrupt):
            start() if start is not None else train(config, run)


def test_a_checkpoint_of_other_settings_is_refused(tiny: RunConfig, tiny_settings: Settings, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    other = tiny_settings(train={"lr": 2e-2})
    with pytest.raises(CheckpointError, match=r"train\.lr = 0\.01, but the settings now say 0\.02"):
        resume(tmp_path / "run", other)


def test_a_run_goes_on_with_fewer_sequences_in_each_pass(
    tiny: RunConfig, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny, tmp_path / "whole")
    _stopped_after(4, tiny, tmp_path / "run", monkeypatch)
    smaller = resume(tmp_path / "run", tiny_settings(train={"micro_batch_size": 1}))
    assert whole.final is not None and smaller.final is not None
    assert smaller.final["loss"] == pytest.approx(whole.final["loss"], rel=1e-3)


def test_a_damaged_checkpoint_is_refused(tiny: RunConfig, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    for file in newest.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        original = file.read_bytes()
        file.write_bytes(bytes(content))
        with pytest.raises(CheckpointError, match=r"damaged|digest|SHA-256"):
            resume(tmp_path / "run")
        file.write_bytes(original)
    resume(tmp_path / "run")


def test_only_the_last_checkpoints_are_kept(tiny: RunConfig, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000008", "step-00000012"]


def test_a_full_disk_stops_with_one_sentence_and_keeps_the_last_checkpoint(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from questlm.training import checkpoint

    save, saved = checkpoint.save_file, []

    def full_after_two(tensors: dict[str, object], path: Path) -> None:
        if len(saved) >= 2:
            raise OSError(28, "No space left on device", str(path))
        saved.append(path)
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_after_two)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(tiny, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    assert resume(tmp_path / "run").steps == 12
