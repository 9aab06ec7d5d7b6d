"""`quest sweep` with real runs: killed in the middle, continued, skipped, failing, and as commands."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from questlm.cli.main import app
from questlm.cli.sweep import _cores
from questlm.errors import ConfigError
from questlm.records import RunRecord
from questlm.sweep import Stopped, Sweep, make_slots, plan_runs, read_grid
from questlm.training.checkpoint import latest_checkpoint


@pytest.fixture
def grid(corpus: Path, tmp_path: Path) -> Path:
    """A file of two runs of a second or two each."""
    fixed = {
        "model": {"layers": 1, "hidden": 32, "heads": 2, "mlp_hidden": 64},
        "data": {"source": str(corpus), "vocab_size": 300, "val_fraction": 0.1},
        "train": {"seq_len": 32, "batch_size": 4, "checkpoint_every": 50, "device": "cpu", "optimizer": "adamw"},
    }
    file = tmp_path / "grid.yaml"
    content = {"sizes": ["125k"], "bits": [4, 16], "tokens_per_parameter": [4], "set": fixed}
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return file


def _run(*arguments: str | Path) -> int:
    one_thread_each = ["--jobs", str(_cores())]
    code = app(["sweep", *map(str, arguments), *one_thread_each], standalone_mode=False)
    return code if isinstance(code, int) else 0


def test_a_killed_sweep_goes_on_where_it_was(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = plan_runs(read_grid(grid)), tmp_path / "out"

    def kill_at_the_first_checkpoint(sweep: Sweep) -> None:
        if any(latest_checkpoint(out / planned.name / "checkpoints") for planned in runs):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        Sweep(runs, out, make_slots("cpu", 1, [], 1)).run(kill_at_the_first_checkpoint)
    (begun,) = (RunRecord.load(out / planned.name) for planned in runs if (out / planned.name).exists())
    assert begun.final is None
    assert 0 < begun.steps < runs[0].config.total_steps()  # type: ignore[operator]

    assert _run(grid, "--out", out) == 0
    records = [RunRecord.load(out / planned.name) for planned in runs]
    assert all(record.final is not None and record.steps == runs[0].config.total_steps() for record in records)
    assert "2 of 2 runs finished" in capsys.readouterr().out

    assert _run(grid, "--out", out, "--print") == 0
    assert capsys.readouterr().out == ""
    before = [(out / planned.name / "record.json").stat().st_mtime_ns for planned in runs]
    assert _run(grid, "--out", out) == 0
    assert [(out / planned.name / "record.json").stat().st_mtime_ns for planned in runs] == before


def test_failures_are_told_and_counted_in_the_exit_code(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = (sys.executable, "-S", "-c", "import sys; sys.exit('quest: error: no luck')")
    monkeypatch.setattr("questlm.sweep.queue._TRAIN", failing)
    assert _run(grid, "--out", tmp_path / "out", "--retries", "0") == 1
    said = capsys.readouterr()
    assert said.err.count("failed (exit code 1: no luck)") == 2
    assert "the same command tries them again" in said.err


def test_commands_and_scripts_are_only_written(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(grid, "--print") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[-1] for line in lines] == ["runs/grid/125k-quest-w4a4-4x-s0", "runs/grid/125k-bf16-4x-s0"]
    assert _run(grid, "--slurm", tmp_path / "sweep.sh") == 0
    assert "--array=0-1\n" in (tmp_path / "sweep.sh").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.yaml", "sweep.sh"]
    with pytest.raises(ConfigError, match="one of them"):
        _run(grid, "--print", "--slurm", tmp_path / "sweep.sh")
