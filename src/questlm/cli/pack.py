"""`quest pack`: from a run folder to an artifact that runs without the training code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from questlm.cli.options import Plugins, load_plugins, parse_bytes, print_table, size
from questlm.errors import ConfigError
from questlm.terminal import command_text, say

if TYPE_CHECKING:
    from questlm.artifact.budget import Budget
    from questlm.artifact.write import PackReport
    from questlm.trained.fit_bytes import FitPoint

__all__ = ["comparison_rows", "pack", "report_rows"]

SingleFile = Annotated[
    Path | None, typer.Option(help="File to make instead of a folder, with its codes entropy-coded.")
]
EmbeddingsOption = Annotated[
    Literal["bf16", "int8"] | None,
    typer.Option(help="How to store embedding and head: bf16 or int8 [default: as trained]."),
]
WithTokenizer = Annotated[
    bool, typer.Option("--tokenizer/--no-tokenizer", help="Whether the run's tokenizer goes with the model.")
]
BudgetOption = Annotated[
    str | None, typer.Option(help="Most bytes that may be taken: 16000000, 16MB. Above it, nothing is kept.")
]
CountCode = Annotated[list[Path] | None, typer.Option(help="File that counts within --budget; may be repeated.")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Print what the codes take by other compressors; takes a while.")
]
Fit = Annotated[
    bool, typer.Option("--fit", help="Round matrices to fewer bits or other steps, for the least loss in --budget.")
]


def pack(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Artifact folder to make.")] = None,
    single_file: SingleFile = None,
    embeddings: EmbeddingsOption = None,
    tokenizer: WithTokenizer = True,
    budget: BudgetOption = None,
    count_code: CountCode = None,
    compare: Compare = False,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, for README.md: apache-2.0.")] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Repository of the Hugging Face hub to upload it to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository of the hub private.")] = False,
    fit: Fit = False,
    fit_seconds: Annotated[float, typer.Option(help="About how long --fit may take.")] = 600.0,
    plugin: Plugins = None,
) -> None:
    """Pack a run's newest checkpoint into an artifact, and check that its codes are those that trained.

    Examples:

        quest pack runs/nano-quest-w4a4 --out model/

        quest pack runs/nano-quest-w4a4 --out model-small/ --embeddings int8

        quest pack runs/nano-quest-w4a4 --out model/ --license apache-2.0 --push-to-hub me/nano-quest-w4a4

        quest pack runs/nano-quest-w4a4 --single-file model.quest --budget 16MB --count-code train.py

        quest pack runs/nano-quest-w4a4 --single-file model.quest --budget 2MB --fit
    """
    from questlm.trained.pack import pack as pack_run

    load_plugins(plugin)
    target, limit = _target(out, single_file), _limit(budget, count_code)
    if fit:
        others = embeddings or push_to_hub or compare or license
        if limit is None or single_file is None or others or not 0 < fit_seconds < 1e9:
            raise ConfigError(
                "--fit needs --single-file FILE, --budget and --fit-seconds above 0, and goes without --embeddings, "
                "--push-to-hub, --compare and --license"
            )
        _fit(run, single_file, limit, fit_seconds, tokenizer)
        return
    report = pack_run(
        run,
        target,
        embeddings=embeddings,
        single_file=single_file is not None,
        tokenizer=None if tokenizer else "",
        budget=limit,
        license=license,
    )
    print_table(f"artifact {target}", report_rows(report, limit))
    if compare:
        _print_comparison(target)
    if push_to_hub is not None:
        from questlm.integrations.hub import push_to_hub as push

        say(f"Uploaded: {push(target, push_to_hub, private)}")
    say(f"Next: {command_text('eval', target)}   or   {command_text('generate', target, '--prompt', 'def ')}")


def _target(out: Path | None, single_file: Path | None) -> Path:
    target = single_file or out
    if target is None or (single_file and out):
        raise ConfigError("say what to make: a folder with --out DIR, or one file with --single-file FILE")
    return target


def _limit(budget: str | None, count_code: Sequence[Path] | None) -> Budget | None:
    from questlm.artifact.budget import Budget

    if count_code and budget is None:
        raise ConfigError("--count-code counts files within a budget; say it with --budget 16MB, or leave it out")
    return None if budget is None else Budget.of_files(int(parse_bytes(budget, "--budget")), count_code or ())


def _print_comparison(target: Path) -> None:
    from questlm.artifact.comparison import coded_sizes
    from questlm.artifact.read import load_artifact

    print_table("the codes alone", comparison_rows(coded_sizes(load_artifact(target))))


def _fit(run: Path, target: Path, limit: Budget, seconds: float, with_tokenizer: bool) -> None:
    """Pack within the budget by rounding anew, and print the frontier of loss over bytes."""
    from questlm.trained.fit_bytes import fit_to_budget

    found = fit_to_budget(run, target, limit, seconds=seconds, with_tokenizer=with_tokenizer)
    print_table(f"artifact {target}", report_rows(found.packed, limit))
    rows = [(f"{point.bytes:,} bytes", _point_text(point, point is found.kept)) for point in found.points]
    print_table(f"loss of each file that was read back, on {found.tokens:,} tokens", rows)
    say(
        f"Nothing was trained: matrices were rounded to other grids, chosen on the validation text, by the sensitivity "
        f"of {found.probed} of {found.matrices} matrices. A model trained at these bits is better."
    )
    say(f"Next: {command_text('eval', target)}   or   {command_text('generate', target, '--prompt', 'def ')}")


def _point_text(point: FitPoint, kept: bool) -> str:
    """Loss of a choice, and what it changes: how many matrices have which bits, and their steps."""
    counts = Counter(choice.bits for choice in point.choices.values())
    clips = sorted({choice.clip for choice in point.choices.values()})
    changes = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(counts.items(), reverse=True))
    text = f"{changes}, steps x {clips[0]:g} to {clips[-1]:g}" if clips else "as trained"
    return f"{point.loss:.4f}  {text}{'  <- kept' if kept else ''}"


def report_rows(report: PackReport, budget: Budget | None = None) -> list[tuple[str, str]]:
    """Sizes for a table."""
    parts = ", ".join(f"{name} {count:,}" for name, count in sorted(report.bytes_by_part.items()))
    ratio = report.bf16_bytes / report.bytes
    rows = [
        ("packed", size(report.bytes)),
        ("the same model in BF16", f"{size(report.bf16_bytes)}: {ratio:.2f} times as large"),
        ("bits a parameter", f"{report.bits_per_parameter:.3f}"),
        ("bytes by part", parts),
    ]
    if budget is not None:
        left = budget.left_for_model - report.bytes
        counted = "".join(f" + {name} {count:,}" for name, count in budget.counted.items())
        rows.append(("budget", f"{report.bytes:,}{counted} of {budget.limit:,} bytes: {left:,} left"))
    return rows


def comparison_rows(sizes: Mapping[str, float]) -> list[tuple[str, str]]:
    """What the codes take by each way, smallest first, beside their entropy."""
    entropy = sizes["entropy"]
    over = {
        way: f" ({count / entropy - 1:+.2%})" if entropy and way != "entropy" else "" for way, count in sizes.items()
    }
    return [
        (way, f"{round(count):,} bytes{over[way]}") for way, count in sorted(sizes.items(), key=lambda item: item[1])
    ]
