"""`quest pack`: from a run folder to an artifact that runs without the training code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from questlm.cli.options import Plugins, load_plugins, print_table, size
from questlm.terminal import command_text, say

if TYPE_CHECKING:
    from questlm.artifact.write import PackReport

__all__ = ["pack", "report_rows"]


def pack(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Artifact folder to make.")],
    embeddings: Annotated[
        Literal["bf16", "int8"] | None,
        typer.Option(help="How to store embedding and head: bf16 or int8 [default: as trained]."),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Pack a run's newest checkpoint into an artifact folder, and check that its codes are those that trained.

    Examples:

        quest pack runs/nano-quest-w4a4 --out model/

        quest pack runs/nano-quest-w4a4 --out model-small/ --embeddings int8
    """
    from questlm.trained.pack import pack as pack_run

    load_plugins(plugin)
    print_table(f"artifact {out}", report_rows(pack_run(run, out, embeddings=embeddings)))
    say(f"Next: {command_text('eval', out)}   or   {command_text('generate', out, '--prompt', 'def ')}")


def report_rows(report: PackReport) -> list[tuple[str, str]]:
    """Sizes for a table."""
    parts = ", ".join(f"{name} {count:,}" for name, count in sorted(report.bytes_by_part.items()))
    ratio = report.bf16_bytes / report.bytes
    return [
        ("packed", size(report.bytes)),
        ("the same model in BF16", f"{size(report.bf16_bytes)}: {ratio:.2f} times as large"),
        ("bytes by part", parts),
    ]
