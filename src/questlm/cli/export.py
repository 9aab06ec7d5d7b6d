"""`quest export`: a packed model in the format of another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from questlm.cli.options import print_table, size
from questlm.export.formats import FORMATS
from questlm.terminal import say

if TYPE_CHECKING:
    from questlm.trained.export import ExportReport

__all__ = ["export"]


def export(
    model: Annotated[Path, typer.Argument(help="Artifact.")],
    out: Annotated[Path, typer.Option(help="What to write; must not exist.")],
    format: Annotated[str, typer.Option(help=f"One of: {', '.join(FORMATS)}.")] = "hf",
    data: Annotated[str | None, typer.Option(help="Text to measure on [default: that of its training].")] = None,
    allow_inexact: Annotated[
        bool, typer.Option("--allow-inexact", help="Write it even where the other program computes otherwise.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a packed model for another program, and print the loss before and after.

    hf: dense float32 weights that transformers loads as a LlamaForCausalLM, without questlm.

    compressed-tensors: packed weights for transformers and vLLM with the package compressed-tensors.

    gguf: a file for llama.cpp; weights of few bits where they are not rotated, in F16 where they are.

    Where the other program computes something else, because it does not round inputs for example, the gap is measured
    and printed, and nothing is written without --allow-inexact.

    Examples:

        quest export model/ --format hf --out model-hf/

        quest export model/ --format compressed-tensors --out model-ct/ --data 'tests/*.txt'
    """
    from questlm.trained.export import export as write

    report = write(model, out, format, data, allow_inexact)
    if as_json:
        losses = {"before": report.before, "after": report.after}
        measured = {name: None if each is None else each.as_dict() for name, each in losses.items()}
        made = {"path": str(report.path), "bytes": report.bytes, "difference": report.difference}
        typer.echo(json.dumps(made | measured | {"gap": report.gap}))
        return
    print_table(f"{format} {out}", _rows(report))
    say(f"Next: {report.next_step}")


def _rows(report: ExportReport) -> list[tuple[str, str]]:
    rows = [("written", size(report.bytes)), ("differs", report.difference or "no: its weights are the same numbers")]
    if report.before is None or report.after is None:
        return [*rows, ("loss", "not measured: the model names no text; give one with --data")]
    rows.append(("loss before", f"{report.before.loss:.6f} nats a token, packed"))
    rows.append(("loss after", f"{report.after.loss:.6f}: gap {report.gap:+.2e} nats"))
    return rows
