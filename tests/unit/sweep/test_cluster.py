"""Commands for another machine: what is left of a sweep."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from questlm.config import to_yaml
from questlm.records import RunRecord
from questlm.sweep import Cell, command_lines, slurm_script

Cells = Callable[..., list[Cell]]


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


def _finish(cell: Cell, out: Path, final: dict[str, float | None] | None) -> None:
    (out / cell.name).mkdir(parents=True)
    (out / cell.name / "config.yaml").write_text(to_yaml(cell.config))
    config = cell.config.model_dump(mode="json")
    RunRecord(config, {}, "none", {}, {}, final=final).save(out / cell.name)


def test_the_script_is_bash_and_its_tasks_are_the_runs(tiny_cells: Cells, tmp_path: Path, bin_folder: Path) -> None:
    cells = tiny_cells(seeds=[0, 1])
    out = tmp_path / "it's out"
    script = slurm_script(cells, out)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    found = re.search(r"^#SBATCH --array=0-(\d+)$", script, re.MULTILINE)
    assert found is not None
    assert int(found.group(1)) == len(cells) - 1
    for number, cell in enumerate(cells):
        code, words = _task(script, number, bin_folder)
        assert (code, words) == (0, ["train", *cell.arguments, "--out", str(out / cell.name)])
    assert _task(script, len(cells), bin_folder) == (2, [])


def test_a_task_goes_on_where_it_was_and_does_nothing_twice(
    tiny_cells: Cells, tmp_path: Path, bin_folder: Path
) -> None:
    cells, out = tiny_cells(), tmp_path / "out"
    _finish(cells[0], out, {"loss": 1.0, "perplexity": 2.0, "bits_per_byte": 1.0, "tokens": 5})
    _finish(cells[1], out, None)
    script = slurm_script(cells, out)
    assert _task(script, 0, bin_folder) == (0, [f"{out / cells[0].name} is finished"])
    assert _task(script, 1, bin_folder) == (0, ["train", "--resume", str(out / cells[1].name)])
    lines = command_lines(cells, out)
    assert len(lines) == len(cells) - 1
    assert shlex.split(lines[0]) == ["quest", "train", "--resume", str(out / cells[1].name)]


def test_a_gpu_is_asked_for_unless_the_runs_are_for_a_cpu(tiny_cells: Cells, tmp_path: Path) -> None:
    assert "--gpus" not in slurm_script(tiny_cells(), tmp_path)
    assert "#SBATCH --gpus=1\n" in slurm_script(tiny_cells(set={}), tmp_path)
