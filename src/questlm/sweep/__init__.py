"""Grids of runs: on this machine, or as commands for a cluster."""

from questlm.sweep.cluster import command_lines, slurm_script
from questlm.sweep.grid import PlannedRun, SweepGrid, plan_runs, read_grid
from questlm.sweep.queue import Stopped, Sweep
from questlm.sweep.slots import Slot, make_slots, visible_gpus
from questlm.sweep.table import display, table

__all__ = [
    "PlannedRun",
    "Slot",
    "Stopped",
    "Sweep",
    "SweepGrid",
    "command_lines",
    "display",
    "make_slots",
    "plan_runs",
    "read_grid",
    "slurm_script",
    "table",
    "visible_gpus",
]
