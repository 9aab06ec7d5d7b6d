"""The command `quest`: one file per command, heavy imports inside the functions that need them."""

from questlm.cli.main import main

__all__ = ["main"]
