"""`quest train`: from text to a run folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from questlm.cli.options import Plugins, fresh_folder, load_plugins, parse_bits, parse_count, print_table
from questlm.config import PRESETS, RunConfig, load_config
from questlm.config import preset as preset_settings
from questlm.config.load import merge
from questlm.errors import ConfigError, QuestError, quoted
from questlm.terminal import command_text, say

if TYPE_CHECKING:
    from questlm.records import RunRecord

__all__ = ["metric_rows", "run_training", "train"]

_HEAD_START = 2.0
"""Seconds that the first process has to say what is wrong before the others say it too."""

_LONGEST_UNASKED = 3600.0
"""Seconds of training that need no budget given: what takes longer is refused, and a budget asked for."""

_HELP = f"""Train a quantised Llama and write a run folder (settings, checkpoints, record).

Examples:

    quest train --preset nano --seconds 120

    quest train --preset 30m --bits 2 --data 'books/*.txt.gz' --tokens 500M --out runs/books-w2a2

    quest train --preset nano --method lsq-row --bits 2 --tokens 1M

    quest train --preset 30m --weight-bits 4 --act-bits 16 --data fineweb/ --set model.vocab_size=50304

    quest train --config runs/books-w2a2/config.yaml --seed 1 --out runs/again

    quest train --init-from llama-3.2-1b/ --data books/ --tokens 200M --set train.lr=1e-4

    quest train --resume runs/books-w2a2

    quest train --plugin my_method.py --method my-method --bits 2

    torchrun --nproc-per-node 8 -m questlm train --preset 800m --data fineweb/ --set train.parallel=fsdp

Presets: {", ".join(PRESETS)}. Every other setting is reached with --set section.key=value or a YAML file; the file
config.yaml of any run shows them all.
"""


def train(  # noqa: D103 (set below)
    preset: Annotated[str | None, typer.Option(help="Model size and its learning rate [default: nano].")] = None,
    method: Annotated[
        str | None, typer.Option(help="Quantisation method [default: quest]; see: quest methods.")
    ] = None,
    bits: Annotated[str | None, typer.Option(help="Bits of weights and activations: 1-8, ternary, 16 (off).")] = None,
    format: Annotated[
        str | None, typer.Option(help="Grid: int, ternary, fp4, lloydmax, int-2:4, bf16-2:4 [default: int].")
    ] = None,
    weight_bits: Annotated[str | None, typer.Option(help="Bits of weights alone.")] = None,
    act_bits: Annotated[str | None, typer.Option(help="Bits of activations alone.")] = None,
    data: Annotated[str | None, typer.Option(help="stdlib, a file, folder or glob, or hf:NAME[:CONFIG].")] = None,
    tokens: Annotated[str | None, typer.Option(help="Budget in tokens, such as 500M.")] = None,
    tokens_per_param: Annotated[float | None, typer.Option(help="Budget in tokens per block parameter.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget in seconds of training.")] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of a Llama, or run folder: begin from its weights.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data order.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to continue.")] = None,
    plugin: Plugins = None,
) -> None:
    from questlm.quant.methods import with_usual_bits

    load_plugins(plugin)
    flags = _flags(method, bits, weight_bits, act_bits, format, data, tokens, tokens_per_param, seconds, seed)
    if init_from is not None:
        flags["init_from"] = str(init_from)
    if resume is not None:
        _continue(resume, preset, out, config, flags, set_ or [])
        return
    fresh = "init_from" not in flags and not any(text.startswith("init_from=") for text in set_ or [])
    default = "nano" if config is None and fresh else None  # an initial model brings its own shape
    loaded = load_config(preset or default, config, flags, set_ or [])
    settings = loaded.model_copy(update={"quant": with_usual_bits(loaded.quant)})
    name = preset or default or (config.stem if config else Path(settings.init_from or "").resolve().name)
    run = out or fresh_folder(f"{name}-{settings.quant.label}")
    run_training(settings, run, longest=None if "budget" in loaded.model_fields_set else _LONGEST_UNASKED)
    if _speaks():
        _say_next(run)


train.__doc__ = _HELP


def run_training(config: RunConfig, out: Path, longest: float | None = None) -> RunRecord:
    """Train and print the result. A budget in tokens that takes more than `longest` seconds is refused."""
    from questlm.training import train as train_run

    record: RunRecord = _stoppable(lambda: train_run(config, out, longest))
    if _speaks():
        _report(record, out)
    return record


def metric_rows(final: dict[str, Any]) -> list[tuple[str, str]]:
    """Loss, perplexity and bits per byte for a table."""
    per_byte, of_text = final["bits_per_byte"], final.get("text_bits_per_byte")
    known = f"{per_byte:.4f}" if per_byte is not None else "unknown (no tokenizer, so no byte count)"
    if per_byte is not None and of_text is not None and f"{of_text:.4g}" != f"{per_byte:.4g}":
        known += f" ({of_text:.4f} without end-of-text tokens)"
    return [
        ("validation loss", f"{final['loss']:.6f} nats/token over {final['tokens']:,} tokens"),
        ("perplexity", f"{final['perplexity']:.3f}"),
        ("bits per byte", known),
    ]


def _continue(
    run: Path, preset: str | None, out: Path | None, config: Path | None, flags: dict[str, Any], overrides: list[str]
) -> None:
    from questlm.training import RunFolder
    from questlm.training import resume as resume_run

    if out is not None:
        raise ConfigError(f"--resume continues in its own folder {run}; leave --out away")
    folder = RunFolder(run)
    folder.read_config()
    named = merge(preset_settings(preset), flags) if preset else flags  # a preset that differs is refused, not ignored
    settings = load_config(None, config or folder.config_file, named, overrides)
    record = _stoppable(lambda: resume_run(run, settings))
    if _speaks():
        _report(record, run)
        _say_next(run)


def _say_next(run: Path) -> None:
    say(f"Next: {command_text('pack', run, '--out', run / 'packed')}")


def _stoppable(work: Any) -> Any:
    from questlm.training import Interrupted, LostPeerError

    try:
        return work()
    except Interrupted as stop:
        if _speaks():
            say(f"quest: {stop}", err=True)
        raise typer.Exit(128 + stop.signal_number) from None
    except LostPeerError:
        raise
    except QuestError:
        if not _speaks():  # what is wrong for all, the first process says, and torchrun then ends this one
            time.sleep(_HEAD_START)
        raise


def _speaks() -> bool:
    """Whether this process is the first or the only one of those that train."""
    return os.environ.get("RANK", "0") == "0"


def _report(record: RunRecord, out: Path) -> None:
    assert record.final is not None
    speed = f"{record.tokens_per_second:,.0f} tokens/s" if record.tokens_per_second else ""
    rows = [
        *metric_rows(record.final),
        ("trained on", f"{record.tokens:,} tokens in {record.seconds:.1f} s ({speed}, {record.device})"),
        ("parameters", f"{record.parameters['all']:,} ({record.parameters['non_embedding']:,} in blocks)"),
    ]
    skipped = record.checks.get("skipped_layers") or {}
    rows += [("not quantised", f"{quoted(name)}: {reason}") for name, reason in skipped.items()]
    print_table(f"run {out}", rows)


def _flags(
    method: str | None, bits: str | None, weight_bits: str | None, act_bits: str | None, format: str | None,
    data: str | None, tokens: str | None, tokens_per_param: float | None, seconds: float | None, seed: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The flags given, as nested settings."""
    weights, activations = (bits if own is None else own for own in (weight_bits, act_bits))
    quant = {
        "method": method,
        "weight_bits": parse_bits(weights),
        "act_bits": parse_bits(activations),
        "format": format,
    }
    given = {name: value for name, value in quant.items() if value is not None}
    flags: dict[str, Any] = {"quant": given} if given else {}
    if data is not None:
        flags["data"] = {"source": data}
    budget = {
        "tokens": parse_count(tokens, "--tokens") if tokens is not None else None,
        "tokens_per_param": tokens_per_param,
        "seconds": seconds,
    }
    if any(value is not None for value in budget.values()):
        flags["budget"] = {name: value for name, value in budget.items() if value is not None}
    if seed is not None:
        flags["seed"] = seed
    return flags
