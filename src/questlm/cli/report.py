"""`quest report`: one page about finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questlm.cli.options import Plugins, load_plugins
from questlm.terminal import say

__all__ = ["report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, folders of them, JSON files of rows.")],
    out: Annotated[Path, typer.Option(help="The page; its pictures' files go into a folder beside it.")] = Path(
        "report.html"
    ),
    fit: Annotated[Path | None, typer.Option(help="A law saved by `quest fit`, instead of one fitted here.")] = None,
    plugin: Plugins = None,
) -> None:
    """Write one self-contained page about runs: curves, loss over megabytes, the fitted law, methods, settings.

    The page needs no network and nothing beside it. Unfinished runs are shown as such and not fitted.

    Examples:

        quest report runs/ --out report.html

        quest report runs/nano-quest-w4a4 runs/nano-bf16

        quest report runs/ published.json --fit law.json --out all.html
    """
    from questlm.report import write_report

    load_plugins(plugin)
    written = write_report(runs, out, fit)
    for note in written.notes:
        say(f"quest: note: {note}", err=True)
    unfinished = f" ({written.unfinished} unfinished)" if written.unfinished else ""
    law = "with" if written.fitted else "without"
    say(f"Wrote {written.page}: {written.runs} runs{unfinished}, {law} a fitted law")
    say(f"Wrote {len(written.pictures)} pictures as SVG, PNG and CSV to {written.folder}")
