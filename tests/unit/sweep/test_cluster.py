"""Commands for another machine: what is left of a sweep."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from questlm.config import to_yaml
from questlm.records import RunRecord
from questlm.sweep import PlannedRun, command_lines, slurm_script

PlanRuns = Callable[..., list[PlannedRun]]


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A `quest` that only prints what it is asked to do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "quest").write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    (folder / "quest").chmod(0o755)
    return folder


def _task(script: str, number: int, bin_folder: Path) -> tuple[int, list[str]]:
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(number)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def _finish(planned: PlannedRun, out: Path, final: dict[str, float | None] | None) -> None:
    (out / planned.name).mkdir(parents=True)
    (out / planned.name / "config.yaml").write_text(to_yaml(planned.config))
    config = planned.config.model_dump(mode="json")
    RunRecord(config, {}, "none", {}, {}, final=final).save(out / planned.name)


def test_the_script_is_bash_and_its_tasks_are_the_runs(tiny_runs: PlanRuns, tmp_path: Path, bin_folder: Path) -> None:
    runs = tiny_runs(seeds=[0, 1])
    out = tmp_path / "it's out"
    script = slurm_script(runs, out)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    found = re.search(r"^#SBATCH --array=0-(\d+)$", script, re.MULTILINE)
    assert found is not None
    assert int(found.group(1)) == len(runs) - 1
    for number, planned in enumerate(runs):
        code, words = _task(script, number, bin_folder)
        assert (code, words) == (0, ["train", *planned.arguments, "--out", str(out / planned.name)])
    assert _task(script, len(runs), bin_folder) == (2, [])


def test_a_task_goes_on_where_it_was_and_does_nothing_twice(
    tiny_runs: PlanRuns, tmp_path: Path, bin_folder: Path
) -> None:
    runs, out = tiny_runs(), tmp_path / "out"
    _finish(runs[0], out, {"loss": 1.0, "perplexity": 2.0, "bits_per_byte": 1.0, "tokens": 5})
    _finish(runs[1], out, None)
    script = slurm_script(runs, out)
    assert _task(script, 0, bin_folder) == (0, [f"{out / runs[0].name} is finished"])
    assert _task(script, 1, bin_folder) == (0, ["train", "--resume", str(out / runs[1].name)])
    lines = command_lines(runs, out)
    assert len(lines) == len(runs) - 1
    assert shlex.split(lines[0]) == ["quest", "train", "--resume", str(out / runs[1].name)]


def test_a_gpu_is_asked_for_unless_the_runs_are_for_a_cpu(tiny_runs: PlanRuns, tmp_path: Path) -> None:
    assert "--gpus" not in slurm_script(tiny_runs(), tmp_path)
    assert "#SBATCH --gpus=1\n" in slurm_script(tiny_runs(set={}), tmp_path)


def test_every_command_names_the_plugins(tiny_runs: PlanRuns, tmp_path: Path, bin_folder: Path) -> None:
    words = ("--plugin", "my methods.py")
    runs, out = [replace(planned, plugins=words) for planned in tiny_runs()], tmp_path / "out"
    _finish(runs[1], out, None)
    script = slurm_script(runs, out)
    assert _task(script, 0, bin_folder)[1][-2:] == list(words)
    assert _task(script, 1, bin_folder)[1] == ["train", "--resume", str(out / runs[1].name), *words]
    lines = command_lines(runs, out)
    assert [tuple(shlex.split(line)[-2:]) for line in lines] == [words] * len(runs)
