"""Grids of runs: on this machine, or as commands for a cluster."""

from questlm.sweep.cluster import command_lines, slurm_script
from questlm.sweep.grid import Cell, Grid, cells, read_grid
from questlm.sweep.queue import Stopped, Sweep
from questlm.sweep.slots import Slot, make_slots, visible_gpus
from questlm.sweep.table import display, table

__all__ = [
    "Cell",
    "Grid",
    "Slot",
    "Stopped",
    "Sweep",
    "cells",
    "command_lines",
    "display",
    "make_slots",
    "read_grid",
    "slurm_script",
    "table",
    "visible_gpus",
]
