"""`quest plan`: which size in which precision, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from questlm.cli.options import Plugins, load_plugins, parse_bytes, parse_count, parse_seconds
from questlm.config.quant import Embeddings
from questlm.errors import ConfigError, quoted
from questlm.grid import Steps
from questlm.humanize import bytes_text, count_text
from questlm.terminal import cell, command_text, say

if TYPE_CHECKING:
    from questlm.scaling import LawFit
    from questlm.scaling.limits import Limits
    from questlm.scaling.plan import Choice, Plan

__all__ = ["plan"]

_FACTORS = (1 / 16, 1 / 4, 1, 4, 16)  # of memory and of data, in the table of how the answer moves
_EMBEDDINGS = [name for name in get_args(Embeddings) if name != "float"]

StepsOption = Annotated[Steps, typer.Option(help="Numbers that the weights' steps are stored in.")]
Coded = Annotated[
    bool, typer.Option("--coded", help="Count the bytes of a single file, whose codes are entropy-coded.")
]
TokenizerBytes = Annotated[
    str | None, typer.Option(help="Bytes of tokenizer.json, 0: none [default: of one that quest train makes].")
]
FromFit = Annotated[Path | None, typer.Option(help="Law from `quest fit --json` [default: of the published runs].")]
Extrapolate = Annotated[
    bool, typer.Option("--extrapolate", help="Also with fewer tokens a parameter than were fitted.")
]


def plan(
    memory: Annotated[str | None, typer.Option(help="Bytes of the packed model: 16MB, 1.5GiB.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training tokens: 10B.")] = None,
    tokens_per_param: Annotated[float | None, typer.Option(help="Training tokens a non-embedding parameter.")] = None,
    flops: Annotated[float | None, typer.Option(help="Training operations, such as 1e20.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Hours of training on one --gpu.")] = None,
    gpu: Annotated[str | None, typer.Option(help="What is trained on, or generated on: h100.")] = None,
    latency: Annotated[str | None, typer.Option(help="Longest time a generated token may take: 5ms.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Bytes a second where it is run: 50GB.")] = None,
    vocab: Annotated[str, typer.Option(help="Entries of the tokenizer.")] = "4096",
    embeddings: Annotated[str, typer.Option(help="How embedding and head are stored: bf16, int8 to int2.")] = "bf16",
    steps: StepsOption = "fp32",
    coded: Coded = False,
    tokenizer: TokenizerBytes = None,
    tied: Annotated[bool, typer.Option("--tied", help="The head shares the embedding's weight.")] = False,
    from_fit: FromFit = None,
    only: Annotated[str | None, typer.Option(help="Precisions to choose from: w4a4,w2a2 [default: the law's].")] = None,
    extrapolate: Extrapolate = False,
    out: Annotated[Path | None, typer.Option(help="Write the best as a config for `quest train`.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw how the answer moves: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugins = None,
) -> None:
    """Say which model to train: size, bits, expected loss with its interval, the runners-up, how the answer moves.

    Examples:

        quest plan --memory 16MB --tokens 10B --vocab 1024 --embeddings int8

        quest plan --memory 16MB --coded --tokens 400M --embeddings int5 --steps fp16 --tied --only a16

        quest plan --memory 1GB --tokens-per-param 100 --picture plan.svg

        quest plan --gpu-hours 8 --gpu h100 --out plan.yaml

        quest plan --latency 5ms --bandwidth 50GB --tokens 100B --from-fit law.json
    """
    from questlm.scaling.hardware import find_gpu
    from questlm.scaling.limits import Limits

    load_plugins(plugin)
    found = find_gpu(gpu) if gpu is not None else None
    limits = Limits(
        memory=parse_bytes(memory, "--memory") if memory is not None else None,
        latency=parse_seconds(latency, "--latency") if latency is not None else None,
        bandwidth=_bandwidth(bandwidth, found.bytes_per_second if found else None),
        tokens=parse_count(tokens, "--tokens") if tokens is not None else None,
        tokens_per_parameter=_positive(tokens_per_param, "--tokens-per-param"),
        flops=_positive(flops, "--flops"),
        gpu_hours=_positive(gpu_hours, "--gpu-hours"),
        gpu=found,
        vocab_size=parse_count(vocab, "--vocab"),
        embeddings=_embeddings(embeddings),
        steps=steps,
        coded=coded,
        tokenizer=None if tokenizer is None else 0 if tokenizer == "0" else int(parse_bytes(tokenizer, "--tokenizer")),
        tied_head=tied,
        extrapolate=extrapolate,
    )
    _answer(limits, from_fit, only, out, picture, as_json)


def _answer(
    limits: Limits, from_fit: Path | None, only: str | None, out: Path | None, picture: Path | None, as_json: bool
) -> None:
    """Make the plan; write the config and the picture that were asked for, and print the plan."""
    from questlm.config import to_yaml
    from questlm.files import atomic_write
    from questlm.plotting import check_picture
    from questlm.scaling.plan import make_plan, matching, plannable
    from questlm.scaling.plan_config import run_config

    if picture is not None:
        check_picture(picture)
    fit = _law(from_fit)
    precisions = None if only is None else matching(plannable(fit), [name.strip() for name in only.split(",")])
    made = make_plan(fit, limits, precisions)
    if out is not None:
        atomic_write(out, to_yaml(run_config(made.best, limits)))
    if picture is not None:
        from questlm.scaling.plan_picture import draw_plan

        draw_plan(fit, limits, made, picture)
    if as_json:
        typer.echo(json.dumps({"choices": [_as_json(choice) for choice in made.choices], "notes": made.notes}))
    else:
        _print(fit, limits, made, out)


def _law(path: Path | None) -> LawFit:
    from questlm.scaling import LawFit

    return LawFit.load(path or Path(__file__).parents[1] / "scaling" / "published_fit.json")


def _positive(value: float | None, option: str) -> float | None:
    if value is not None and not 0 < value < 1e30:
        raise ConfigError(f"{option} {value} is not a number above 0")
    return value


def _embeddings(name: str) -> Embeddings:
    if name not in _EMBEDDINGS:
        raise ConfigError(f"--embeddings {quoted(name)} is not one of {', '.join(_EMBEDDINGS)}")
    return cast(Embeddings, name)


def _bandwidth(text: str | None, of_gpu: float | None) -> float | None:
    return parse_bytes(text.lower().removesuffix("/s"), "--bandwidth") if text is not None else of_gpu


def _as_json(choice: Choice) -> dict[str, Any]:
    model = choice.model
    return {
        "group": choice.group,
        "parameters": model.block_parameters,
        "layers": model.layers,
        "hidden": model.hidden,
        "bytes": choice.bytes,
        "tokens": round(choice.tokens),
        "loss": {"value": choice.loss, "low": choice.low, "high": choice.high},
        "wins": choice.wins,
        "outside": list(choice.outside),
        "unmeasured": choice.unmeasured,
    }


def _print(fit: LawFit, limits: Limits, made: Plan, out: Path | None) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console, best = Console(), made.best
    say(
        f"Train {count_text(best.model.block_parameters)} parameters ({best.model.layers} layers of "
        f"{best.model.hidden}) in {best.group} on {count_text(best.tokens)} tokens: expected loss "
        f"{best.loss:.3f} nats a token ({best.low:.3f} to {best.high:.3f})."
    )
    table = Table(
        title="the best of each precision", title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("precision", "params", "shape", "packed", "tokens", "loss (95 %)", "won"):
        table.add_column(name, justify="left" if name == "precision" else "right", no_wrap=True)
    names = _names([choice.group for choice in made.choices])
    for choice in made.choices:
        table.add_row(
            cell(names[choice.group]),
            count_text(choice.model.block_parameters),
            f"{choice.model.layers} x {choice.model.hidden}",
            bytes_text(choice.bytes),
            count_text(choice.tokens),
            f"{choice.loss:.3f} ({choice.low:.3f}-{choice.high:.3f}){'*' if choice.outside else ' '}",
            f"{choice.wins:.0%}",
        )
    console.print(table)
    say("won: share of the fit's bootstrap draws by which it is the best of all")
    if any(choice.outside for choice in made.choices):
        say("* outside the range that the law was fitted on: the interval is widened")
    _print_moves(console, fit, limits, made)
    for note in made.notes:
        say(f"- {note}")
    if out is not None:
        say(f"wrote {out}; train it with: {command_text('train', '--config', out, '--data', 'YOUR_TEXT')}")


def _print_moves(console: Any, fit: LawFit, limits: Limits, made: Plan) -> None:
    """How the best precision moves with memory and with data."""
    from dataclasses import replace

    from rich.box import SIMPLE
    from rich.table import Table

    from questlm.scaling.plan import best_shapes

    amount = next(n for n in ("tokens", "tokens_per_parameter", "flops", "gpu_hours") if getattr(limits, n) is not None)
    memory, groups = limits.memory or float(made.best.bytes), [choice.group for choice in made.choices]
    names = _names(groups)
    table = Table(
        title=f"and with other memory (down) and {amount.replace('_', ' ')} (across)", title_justify="left", box=SIMPLE
    )
    table.add_column("", justify="right")
    for factor in _FACTORS:
        table.add_column(f"{getattr(limits, amount) * factor:,.3g}", justify="right", no_wrap=True)
    for rows in _FACTORS:
        cells = []
        for columns in _FACTORS:
            moved = replace(limits, memory=memory * rows, **{amount: getattr(limits, amount) * columns})
            at = best_shapes(fit, moved, groups)
            cells.append(cell(f"{names[at[0].group]} {count_text(at[0].model.block_parameters)}" if at else "-"))
        table.add_row(bytes_text(memory * rows), *cells)
    console.print(table)


def _names(groups: Sequence[str]) -> dict[str, str]:
    """The widths alone where these tell the groups apart."""
    widths = {group: group.split("/")[1] if "/" in group else group for group in groups}
    return widths if len(set(widths.values())) == len(groups) else {group: group for group in groups}
