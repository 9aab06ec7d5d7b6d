"""Grids of runs: on this machine, or as commands for a cluster."""
