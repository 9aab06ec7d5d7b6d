"""`quest eval`: the validation loss of a run or of a packed model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from questlm.cli.options import CacheDtype, Plugins, load_plugins, print_table
from questlm.cli.train import metric_rows

__all__ = ["evaluate"]


def evaluate(
    path: Annotated[Path, typer.Argument(help="Run folder, or artifact: a folder or one file.")],
    data: Annotated[str | None, typer.Option(help="Other text to evaluate on, all of it.")] = None,
    cache_dtype: Annotated[
        CacheDtype | None, typer.Option(help="Of an artifact: round keys and values as quest generate would.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugins = None,
) -> None:
    """Measure loss, perplexity and bits per byte in float32, on the run's own validation split unless --data is given.

    An artifact is run by the inference engine; the gap to the loss measured in training is printed beside it.

    Examples:

        quest eval model/

        quest eval model.quest

        quest eval model/ --data 'tests/*.txt'

        quest eval runs/nano-quest-w4a4 --json

        quest eval model/ --cache-dtype int8
    """
    import torch

    from questlm.trained.evaluate import evaluate as measure

    load_plugins(plugin)
    result = measure(path, data, cache_dtype=None if cache_dtype is None else getattr(torch, cache_dtype))
    rows = metric_rows(result.as_dict())
    if result.trained_loss is not None:
        rows.append(("loss in training", f"{result.trained_loss:.6f}: gap {result.gap:+.2e} nats"))
    if as_json:
        typer.echo(json.dumps(result.as_dict() | {"gap": result.gap}))
    else:
        print_table(str(path), rows)
