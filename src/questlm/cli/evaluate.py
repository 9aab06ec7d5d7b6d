"""`quest eval`: the loss of models on a text, and their accuracy in tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from questlm.cli.options import CacheDtype, Plugins, load_plugins, print_table
from questlm.cli.train import metric_rows
from questlm.errors import ConfigError, MissingDependencyError
from questlm.terminal import cell

if TYPE_CHECKING:
    from questlm.evaluation.task_result import TaskResult
    from questlm.trained.comparison import ModelResult
    from questlm.trained.evaluate import Measurement

__all__ = ["evaluate"]

_HELP = """Measure loss, perplexity and bits per byte in float32, of a run on its validation split or on --data.

An artifact is run by the inference engine; the gap to the loss measured in training is printed beside it.
Accuracies have 95 % confidence intervals; those of several models are compared with the first on the same items.

Examples:

    quest eval model/

    quest eval model.quest

    quest eval model/ --data 'tests/*.txt' --stride 256 --by-document

    quest eval runs/books-w4a4 runs/books-w1a1 llama-3.2-1b/ --data val.txt --out losses.json

    quest eval bf16/ w4a4/ --tasks hellaswag,arc_easy --tasks-dir eval/ --out tasks.json

    quest eval model/ --cache-dtype int8
"""


def evaluate(  # noqa: D103 (set below)
    models: Annotated[
        list[Path],
        typer.Argument(help="Run folder, artifact (folder or file), or Hugging Face folder.", metavar="MODEL"),
    ],
    data: Annotated[str | None, typer.Option(help="Other text to evaluate on, all of it.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a window [default: as in training, or 512].")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next [default: no overlap].", min=1)
    ] = None,
    by_document: Annotated[bool, typer.Option("--by-document", help="Also bits per byte of each document.")] = False,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, such as hellaswag,lambada_openai,arc_easy,piqa; no loss without --data.")
    ] = None,
    tasks_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a file TASK.jsonl of each task [default: lm-evaluation-harness fetches its own]."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many items of each task.", min=1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    cache_dtype: Annotated[
        CacheDtype | None, typer.Option(help="Of an artifact: round keys and values as quest generate would.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with every document and item.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugins = None,
) -> None:
    from questlm.trained.comparison import ModelResult, comparison_json
    from questlm.trained.evaluate import evaluate as measure

    _check(out, tasks, tasks_dir, limit, lacks_text=data is None and (stride is not None or by_document))
    load_plugins(plugin)
    results = []
    for model in models:
        measured = None
        if tasks is None or data is not None:
            measured = measure(
                model,
                data,
                seq_len=seq_len,
                stride=stride,
                by_document=by_document,
                cache_dtype=_dtype(cache_dtype),
                device=device,
            )
        scored = {} if tasks is None else _scored(model, tasks, tasks_dir, limit, seq_len, cache_dtype, device)
        results.append(ModelResult(str(model), measured, scored))
    if out is not None:
        from questlm.json_files import write_json
        from questlm.training.device import device_name, pick_device

        write_json(out, comparison_json(results, device_name(pick_device(device))))
    if as_json:
        found = [result.as_json() for result in results]
        plain = len(found) == 1 and tasks is None and not by_document
        typer.echo(json.dumps(found[0]["loss"] if plain else found))
    else:
        _print(results)


evaluate.__doc__ = _HELP


def _check(out: Path | None, tasks: str | None, tasks_dir: Path | None, limit: int | None, lacks_text: bool) -> None:
    """Refuse options that do not go together before anything is measured."""
    if tasks is not None and lacks_text:
        raise ConfigError("--stride and --by-document are of a text; name one with --data, or leave out --tasks")
    if tasks is None and (tasks_dir is not None or limit is not None):
        raise ConfigError("--tasks-dir and --limit are of tasks; name them, as in --tasks hellaswag,arc_easy")
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file, such as --out {out / 'losses.json'}")
    if tasks is not None and tasks_dir is None and find_spec("lm_eval") is None:
        raise MissingDependencyError("lm_eval", "eval", "--tasks without --tasks-dir, a folder with files of items,")


def _dtype(name: str | None) -> Any:
    """The dtype of torch of this name."""
    import torch

    return None if name is None else getattr(torch, name)


def _scored(
    model: Path,
    tasks: str,
    folder: Path | None,
    limit: int | None,
    seq_len: int | None,
    cache_dtype: str | None,
    device: str,
) -> dict[str, TaskResult]:
    names = [name.strip() for name in tasks.split(",")]
    if folder is None:
        from questlm.integrations.lm_eval import harness_results

        return harness_results(model, names, limit, device=device, cache_dtype=cache_dtype, max_length=seq_len)
    from questlm.trained.tasks import evaluate_tasks

    rounded = _dtype(cache_dtype)
    return evaluate_tasks(model, names, folder, limit=limit, seq_len=seq_len, cache_dtype=rounded, device=device)


def _print(results: Sequence[ModelResult]) -> None:
    measured = [(each.model, each.measurement) for each in results if each.measurement is not None]
    if len(measured) == 1:
        print_table(measured[0][0], _rows(measured[0][1]))
    elif measured:
        _print_losses(measured)
    if results[0].tasks:
        _print_tasks(results)


def _rows(result: Measurement) -> list[tuple[str, str]]:
    rows = metric_rows(result.as_dict())
    if result.trained_loss is not None:
        rows.append(("loss in training", f"{result.trained_loss:.6f}: gap {result.gap:+.2e} nats"))
    if result.documents:
        rows.append(("bits per byte by document", _documents_text(result)))
    return rows


def _documents_text(result: Measurement) -> str:
    from statistics import median

    from questlm.evaluation.strided import mean_bits_per_byte

    mean = mean_bits_per_byte(result.documents)
    found = [] if mean is None else [f"mean {mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]"]
    found.append(f"median {median(each.bits_per_byte for each in result.documents):.4f}")
    return f"{', '.join(found)} of {len(result.documents):,} documents"


def _print_losses(measured: Sequence[tuple[str, Measurement]]) -> None:
    rows = []
    for name, result in measured:
        per_byte = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
        gap = "" if result.gap is None else f"{result.gap:+.1e}"
        rows.append([name, f"{result.loss:.6f}", f"{result.perplexity:.3f}", per_byte, f"{result.tokens:,}", gap])
        if result.documents:
            rows.append([f"  by document: {_documents_text(result)}"])
    _print_columns("loss in nats a token", ["model", "loss", "perplexity", "bits/byte", "tokens", "gap"], rows)


def _print_tasks(results: Sequence[ModelResult]) -> None:
    from questlm.trained.comparison import differences

    compared = differences(results)
    for name, first in results[0].tasks.items():
        measures = list(first.correct)
        rows = []
        for number, each in enumerate(results):
            result = each.tasks[name]
            perplexity = [] if result.perplexity is None else [f"{result.perplexity:.3f}"]
            rows.append([each.model, *(result.estimates()[measure].text() for measure in measures), *perplexity])
            if number:
                found = compared[number - 1][name]
                rows.append(["  minus the first model", *(found[measure].text() for measure in measures)])
        title = f"{name}, {len(first.nats):,} items: percent right, with 95 % confidence intervals"
        _print_columns(title, ["model", *measures, *(["perplexity"] if first.perplexity is not None else [])], rows)


def _print_columns(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=cell(title, "table.title"), title_justify="left", box=SIMPLE, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*(cell(text) for text in row))
    Console().print(table)
