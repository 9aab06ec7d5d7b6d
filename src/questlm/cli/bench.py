"""`quest bench`: how fast packed models are on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from questlm.cli.options import parse_count
from questlm.terminal import cell, say

if TYPE_CHECKING:
    from questlm.bench import Comparison, SpeedReport

__all__ = ["bench"]

bench = typer.Typer(
    help="Measure packed models on this machine's CPU, beside the same shapes in float32.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Artifacts = Annotated[list[Path], typer.Argument(help="Artifact folders, made by quest pack.", metavar="ARTIFACT...")]
Seconds = Annotated[float, typer.Option(help="About how long to measure; each case has at least three rounds.")]
Threads = Annotated[int | None, typer.Option(help="Threads to use [default: torch's].", min=1)]
Weights = Annotated[Literal["auto", "packed"], typer.Option(help="In memory, as in quest generate.")]
Picture = Annotated[Path | None, typer.Option(help="Draw the speed-up over float32: .svg, .png or .pdf.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@bench.command("layer")
def layer(
    artifacts: Artifacts,
    batch: Annotated[str, typer.Option(help="Rows of the input.")] = "1,8,64",
    seconds: Seconds = 30.0,
    threads: Threads = None,
    weights: Weights = "auto",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Time each kind of linear layer beside the product in float32.

    Examples:

        quest bench layer model/

        quest bench layer w4/ w2/ w1/ --batch 1,2,4,8,16 --picture layers.svg
    """
    from questlm.bench import layer_speed

    _check(picture)
    _show(layer_speed(artifacts, _counts(batch, "--batch"), seconds, threads, weights), picture, as_json)


@bench.command("prefill")
def prefill(
    artifacts: Artifacts,
    tokens: Annotated[str, typer.Option(help="Lengths of a prompt.")] = "32,128,512",
    seconds: Seconds = 30.0,
    threads: Threads = None,
    weights: Weights = "auto",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Time reading a prompt up to the token behind it, beside the same model in float32.

    Examples:

        quest bench prefill model/

        quest bench prefill model/ --tokens 512 --threads 1 --json
    """
    from questlm.bench import prefill_speed

    _check(picture)
    _show(prefill_speed(artifacts, _counts(tokens, "--tokens"), seconds, threads, weights), picture, as_json)


@bench.command("decode")
def decode(
    artifacts: Artifacts,
    batch: Annotated[str, typer.Option(help="Sequences to generate at once.")] = "1,4,16",
    seconds: Seconds = 30.0,
    threads: Threads = None,
    weights: Weights = "auto",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Time generating token by token, beside the same model in float32.

    Examples:

        quest bench decode model/

        quest bench decode w4/ w2/ --batch 1 --seconds 60
    """
    from questlm.bench import decode_speed

    _check(picture)
    _show(decode_speed(artifacts, _counts(batch, "--batch"), seconds, threads, weights), picture, as_json)


def _check(picture: Path | None) -> None:
    """Refuse a picture that cannot be drawn before anything is measured."""
    if picture is not None:
        from questlm.plotting import check_picture

        check_picture(picture)


def _counts(text: str, option: str) -> list[int]:
    return [parse_count(each, option) for each in text.split(",")]


def _show(report: SpeedReport, picture: Path | None, as_json: bool) -> None:
    if picture is not None:
        from questlm.bench.picture import draw_speed

        draw_speed(report, picture)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        _print(report)


_UNITS = {"layer": "us a layer", "prefill": "tokens/s", "decode": "tokens/s"}
_BATCHES = {"layer": "rows", "prefill": "tokens", "decode": "sequences"}


def _print(report: SpeedReport) -> None:
    by_artifact: dict[str, list[Comparison]] = {}
    for each in report.comparisons:
        by_artifact.setdefault(each.artifact, []).append(each)
    for name, found in by_artifact.items():
        _print_table(name, report.kind, found)
    say(f"{report.device}, torch {report.versions['torch']}; medians over the rounds, in which both take turns")


def _print_table(name: str, kind: str, found: Sequence[Comparison]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    title = cell(f"{name}, {kind}: {_UNITS[kind]}", "table.title")
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("shape", "bits", _BATCHES[kind], "packed", "float32", "speed-up (range)", "rounds"):
        table.add_column(column, justify="left" if column in ("shape", "bits") else "right", no_wrap=True)
    for each in found:
        table.add_row(
            cell(f"{each.what} {each.shape}"),
            cell(each.bits),
            str(each.batch),
            _speed(kind, each.packed_seconds),
            _speed(kind, each.float32_seconds),
            f"{each.speedup:.2f} ({each.slowest:.2f}-{each.fastest:.2f})",
            str(each.rounds),
        )
    Console().print(table)


def _speed(kind: str, seconds: float) -> str:
    return f"{1e6 * seconds:,.0f}" if kind == "layer" else f"{1 / seconds:,.1f}"
