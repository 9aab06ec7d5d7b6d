"""`quest sweep`: every run of a grid."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from questlm.cli.options import Plugins, load_plugins
from questlm.errors import ConfigError
from questlm.terminal import command_text, say

if TYPE_CHECKING:
    from questlm.sweep import PlannedRun

__all__ = ["sweep"]


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file: sizes, methods, bits, tokens_per_parameter, seeds, set.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run folders [default: runs/NAME-OF-GRID].")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time [default: one a GPU; one on a CPU].")] = None,
    retries: Annotated[int, typer.Option(help="How often a run that failed is tried again.", min=0)] = 1,
    print_: Annotated[bool, typer.Option("--print", help="Only print a command for each run that is left.")] = False,
    slurm: Annotated[Path | None, typer.Option(help="Only write a SLURM array script, one task a run.")] = None,
    plugin: Plugins = None,
) -> None:
    """Train every run of a grid: sizes x methods x bits x tokens per parameter x seeds.

    Runs go on side by side, one on each GPU, or --jobs of them on equal shares of a CPU's cores. The same command again
    skips what is finished and resumes what was stopped. Exit code 1: some runs failed (their logs are in OUT/logs).

    Examples:

        quest sweep studies/cpu-law/grid.yaml --jobs 2

        quest sweep grid.yaml --out runs/law --retries 3

        quest sweep grid.yaml --print

        quest sweep grid.yaml --slurm sweep.sh
    """
    from questlm.files import atomic_write
    from questlm.sweep import command_lines, plan_runs, read_grid, slurm_script

    load_plugins(plugin)
    runs = plan_runs(read_grid(grid), plugin or ())
    folder = out or Path("runs") / grid.stem
    if print_ and slurm is not None:
        raise ConfigError("--print and --slurm are two ways of the same; give one of them")
    if print_:
        for line in command_lines(runs, folder):
            typer.echo(line)
    elif slurm is not None:
        atomic_write(slurm, slurm_script(runs, folder))
        say(f"{slurm}: {len(runs)} tasks; next: sbatch {shlex.quote(str(slurm))}")
    else:
        _run(runs, folder, jobs, retries)


def _run(runs: list[PlannedRun], folder: Path, jobs: int | None, retries: int) -> None:
    import torch
    from rich.console import Console

    from questlm.sweep import Stopped, Sweep, display, make_slots, table, visible_gpus

    gpus = visible_gpus(os.environ, torch.cuda.device_count())
    work = Sweep(runs, folder, make_slots(runs[0].config.train.device, jobs, gpus, _cores()), retries)
    try:
        with display() as show:
            work.run(show)
    except Stopped as stop:
        say(f"quest: {stop}", err=True)
        raise typer.Exit(128 + stop.signal_number) from None
    Console().print(table(work))
    if work.of_state("failed"):
        say(f"quest: some runs failed; see {folder / 'logs'}; the same command tries them again", err=True)
        raise typer.Exit(1)
    say(f"Next: {command_text('fit', folder)}")


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
