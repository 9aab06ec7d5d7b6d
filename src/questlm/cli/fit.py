"""`quest fit`: the scaling law of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from questlm.errors import ConfigError
from questlm.terminal import cell, say

if TYPE_CHECKING:
    from questlm.scaling import Estimate, LawFit, Run
    from questlm.scaling.variants import Score

__all__ = ["fit"]


def fit(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, folders of them, JSON files of rows.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the fitted law to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw law and residuals (.png, .svg, .pdf).")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also cross-validate other forms of the law.")] = False,
) -> None:
    """Fit L = A / (N eff)^alpha + B / D^beta + E to runs: one eff for each method, width and format; BF16's is 1.

    N is the number of non-embedding parameters, D of tokens trained on, L the validation loss. A row is {"N", "D",
    "w_bits", "a_bits", "format", "method", "loss"} and, optionally, "seed". `quest plan --from-fit` reads the JSON.

    Examples:

        quest fit runs/

        quest fit runs/sweep-1 runs/sweep-2 rows.json --json law.json --picture law.png

        quest fit rows.json --compare
    """
    from questlm.plotting import check_picture
    from questlm.progress import progress
    from questlm.scaling import fit_law, read_runs
    from questlm.scaling.law_picture import draw_fit

    for path in filter(None, (json_file, picture)):
        if not path.parent.is_dir():
            raise ConfigError(f"{path} cannot be written: the folder {path.parent} does not exist; make it first")
        if path.resolve() in {source.resolve() for source in runs}:
            raise ConfigError(f"{path} is what the law is fitted to; write to another file")
    if picture is not None:
        check_picture(picture)
    left_out: list[str] = []
    found = read_runs(runs, left_out)
    with progress("fitting", 1.0) as update:
        law = fit_law(found, update=update)
    law = replace(law, warnings=[*law.warnings, *left_out])
    _print_law(law)
    if compare:
        _print_scores(found)
    if json_file is not None:
        law.save(json_file)
        say(f"Wrote {json_file}")
    if picture is not None:
        draw_fit(law, picture)
        say(f"Drew {picture}")


def _print_law(law: LawFit) -> None:
    law_rows = [(name, *_columns(law, name, estimate)) for name, estimate in law.intervals.items()]
    title = f"L = A / (N eff)^alpha + B / D^beta + E, fitted to {law.n_runs} runs"
    _print(title, ("", "value", "95 % profile", "95 % bootstrap"), law_rows)
    rows = [(name, str(law.groups[name]), *_columns(law, name, estimate)) for name, estimate in law.eff.items()]
    rows = [("bf16", str(law.groups["bf16"]), "1", "by definition", ""), *rows]
    _print("eff: what a parameter is worth in BF16 ones", ("", "runs", "eff", "95 % profile", "95 % bootstrap"), rows)
    say(f"The law's losses are off by {100 * law.rms_log_residual:.2f} % (root mean square).")
    for warning in law.warnings:
        say(f"Warning: {warning}.")


def _columns(law: LawFit, name: str, estimate: Estimate) -> tuple[str, str, str]:
    low, high = law.bootstrap_interval(name)
    return (
        _short(estimate.value),
        f"{_short(estimate.low)} to {_short(estimate.high)}",
        f"{_short(low)} to {_short(high)}",
    )


def _print_scores(runs: Sequence[Run]) -> None:
    from questlm.progress import progress
    from questlm.scaling.variants import HELD_OUT, comparable, compare

    chosen = comparable(runs)
    with progress("comparing", 1.0) as update:
        scores = compare(chosen, update=update)
    rows = [
        (
            score.name,
            str(score.parameters),
            f"{score.rest:.2f}",
            _percent(score.fitted),
            *(_percent(score.held_out[what]) for what in HELD_OUT),
        )
        for score in scores
    ]
    _print(
        f"Forms of the law: rms error in %, fitted to {len(chosen)} runs; then held out by",
        ("", "free", "E", "fitted", *HELD_OUT),
        rows,
    )
    if len(chosen) < len(runs):
        say(f"Left out: {len(runs) - len(chosen)} runs of other methods and formats than most.")
    say(_verdict(scores))


def _verdict(scores: Sequence[Score]) -> str:
    from questlm.scaling.variants import HELD_OUT

    best = []
    for what in HELD_OUT:
        errors = {score.name: error for score in scores if (error := score.held_out[what]) is not None}
        if errors:
            best.append(f"{what}: {min(errors, key=lambda name: errors[name])}")
    return f"Predicts best what was held out, by {'; '.join(best)}. A dash: those runs do not determine the prediction."


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:#.3g}".rstrip(".")


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.2f}"


def _print(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column(header[0], style="bold", no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(cell, row))
    Console().print(cell(title, "bold"))
    Console().print(table)
