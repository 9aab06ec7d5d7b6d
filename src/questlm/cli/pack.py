"""`quest pack`: from a run folder to an artifact that runs without the training code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from questlm.cli.options import Plugins, load_plugins, print_table, size
from questlm.terminal import command_text, say

if TYPE_CHECKING:
    from questlm.artifact.write import PackReport

__all__ = ["pack", "pack_run", "report_rows"]


def pack(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Artifact folder to make.")],
    embeddings: Annotated[
        Literal["bf16", "int8"] | None,
        typer.Option(help="Form of embedding and head: bf16 or int8 [default: as trained]."),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Pack a run's newest checkpoint into an artifact folder, and check that its codes are those that trained.

    Examples:

        quest pack runs/nano-quest-w4a4 --out model/

        quest pack runs/nano-quest-w4a4 --out model-small/ --embeddings int8
    """
    load_plugins(plugin)
    print_table(f"artifact {out}", report_rows(pack_run(run, out, embeddings)))
    say(f"Next: {command_text('eval', out)}   or   {command_text('generate', out, '--prompt', 'def ')}")


def pack_run(run: Path, out: Path, embeddings: Literal["bf16", "int8"] | None = None) -> PackReport:
    """Pack the newest checkpoint of `run` into `out`."""
    from questlm.export.pack import pack as write_artifact
    from questlm.memory import host_memory, require_memory
    from questlm.records import RunRecord
    from questlm.scaling.memory import packing_memory
    from questlm.training import RunFolder, load_run

    needed = packing_memory(RunFolder(run).read_config().model)
    require_memory(needed, host_memory(), f"packing {run}", "use a machine that has more memory")
    loaded = load_run(run)
    record = RunRecord.load(run)
    tokenizer = RunFolder(run).tokenizer_file
    training: dict[str, Any] = {
        # Where this machine keeps its cache and tokenizer is nobody else's business.
        "data": loaded.config.data.model_dump(mode="json", exclude={"cache_dir", "tokenizer"}),
        "seq_len": loaded.config.train.seq_len,
        "tokens": loaded.tokens,
        # A run stopped before its end, or between a checkpoint and its record, has no final loss for these weights.
        "final": record.final if record.steps == loaded.step else None,
        "val_hash": record.data.get("val_hash"),
    }
    text = tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None
    end = loaded.config.data.end_of_text
    return write_artifact(loaded.model, out, tokenizer=text, end_of_text=end, training=training, embeddings=embeddings)


def report_rows(report: PackReport) -> list[tuple[str, str]]:
    """Sizes for a table."""
    parts = ", ".join(f"{name} {count:,}" for name, count in sorted(report.bytes_by_part.items()))
    ratio = report.bf16_bytes / report.bytes
    return [
        ("packed", size(report.bytes)),
        ("the same model in BF16", f"{size(report.bf16_bytes)}: {ratio:.2f} times as large"),
        ("bytes by part", parts),
    ]
