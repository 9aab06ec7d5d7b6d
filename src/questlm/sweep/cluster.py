"""Commands for the unfinished runs of a sweep, to run elsewhere: shell lines, or a SLURM array script."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from questlm.sweep.grid import PlannedRun
from questlm.sweep.runs import arguments_left, is_finished

__all__ = ["command_lines", "slurm_script"]

_HEAD = """\
#!/bin/bash
# {runs} runs of a sweep, one a task; submit with `sbatch FILE` from the folder in which `quest sweep` wrote it. Options
# given to sbatch win over these. Submitted again, it skips what is finished and goes on with what was stopped.
#SBATCH --job-name=quest-sweep
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
{device}
set -euo pipefail

case "${{SLURM_ARRAY_TASK_ID:?is set by sbatch}}" in
"""

_TAIL = """\
  *) echo "there is no run ${SLURM_ARRAY_TASK_ID}" >&2; exit 2 ;;
esac

if grep -qs '"final": {' "$run/record.json"; then
  echo "$run is finished"
  exit 0
fi
if [ -e "$run/config.yaml" ]; then
  set -- --resume "$run"
else
  set -- "$@" --out "$run"
fi
# In the shell's place, so that it receives SLURM's SIGTERM and saves.
"""
_EXEC = 'exec quest train "$@"'


def command_lines(runs: Sequence[PlannedRun], out: Path) -> list[str]:
    """One `quest train` command for each run that is not finished."""
    return [
        shlex.join(["quest", "train", *arguments_left(planned, out)])
        for planned in runs
        if not is_finished(planned, out)
    ]


def slurm_script(runs: Sequence[PlannedRun], out: Path) -> str:
    """A SLURM array script with one task for each run."""
    on_cpu = runs[0].config.train.device == "cpu"
    head = _HEAD.format(runs=len(runs), last=len(runs) - 1, device="" if on_cpu else "#SBATCH --gpus=1\n")
    tasks = [
        f"  {number}) run={shlex.quote(str(out / planned.name))}; set -- {shlex.join(planned.arguments)} ;;\n"
        for number, planned in enumerate(runs)
    ]
    last = " ".join((_EXEC, *map(shlex.quote, runs[0].plugins)))
    return head + "".join(tasks) + _TAIL + last + "\n"
