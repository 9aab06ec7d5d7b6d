"""`quest diagnose`: pictures of how a run is quantised, and the numbers behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from questlm.cli.options import Plugins, load_plugins, parse_bits, print_table
from questlm.terminal import say

__all__ = ["diagnose"]


def diagnose(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to make [default: RUN/diagnostics].")] = None,
    data: Annotated[str | None, typer.Option(help="Other text than the run's own validation split.")] = None,
    bits: Annotated[str | None, typer.Option(help="Bits to diagnose at: 1-8, ternary [default: the run's].")] = None,
    batches: Annotated[
        int, typer.Option(help="Batches of 1024 tokens to measure on (smaller ones of a short text).", min=1, max=4096)
    ] = 8,
    seed: Annotated[int, typer.Option(help="Chooses the tokens.", min=0)] = 0,
    plugin: Plugins = None,
) -> None:
    """Draw how a run is quantised: gradient alignment, trust masks, normality, error; as PNG and as JSON.

    Examples:

        quest diagnose runs/nano-quest-w4a4

        quest diagnose runs/nano-bf16 --bits 4 --out bf16-at-4-bits/

        quest diagnose runs/books-w2a2 --data 'tests/*.txt' --batches 32
    """
    from questlm.trained.diagnose import RESULT_NAME
    from questlm.trained.diagnose import diagnose as diagnose_run

    load_plugins(plugin)
    folder = out or run / "diagnostics"
    result = diagnose_run(run, folder, data, parse_bits(bits), batches, seed)
    print_table(f"diagnostics {folder}", _rows(result))
    persistence = result["masks"]["persistence"]
    if result["note"]:
        say(result["note"])
    if "skipped" in persistence:
        say(f"Not drawn: {persistence['skipped']}.")
    say(f"Wrote {RESULT_NAME} and {len(result['pictures'])} pictures to {folder}")


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The main numbers, for a table."""
    alignment = result["gradient_alignment"]
    rows = [("measured on", f"{alignment['batches']} batches of {result['tokens_per_batch']:,} tokens")]
    for method, values in alignment["methods"].items():
        weights, streams = (_mean(values[key]) for key in ("weights_by_block", "stream_by_block"))
        rows.append((f"gradient cosine, {method}", f"weights {weights}, residual stream {streams}"))
    masks = result["masks"]
    newest = masks["checkpoints"][-1]
    rows.append(("masked weights", f"{newest['masked']:.3%} (Gaussian: {masks['gaussian']:.3%})"))
    pairs = masks["persistence"].get("pairs")
    if pairs and pairs[-1]["masked_if_masked"] is not None:
        again = f"{pairs[-1]['masked_if_masked']:.1%} of those masked at step {pairs[-1]['from']}"
        rows.append(("masked again", f"{again}, at step {pairs[-1]['to']}"))
    for role, error in result["error"].items():
        rows.extend(_role_rows(result, role, error))
    return rows


def _role_rows(result: dict[str, Any], role: str, error: dict[str, Any] | None) -> list[tuple[str, str]]:
    layer = result["normality"]["worst"][role]["layer"]
    before, after = (result["normality"][role][layer][stage]["excess_kurtosis"] for stage in ("before", "after"))
    rows = [(f"{role}, kurtosis", f"{before:+.2f} before HT, {after:+.2f} after, in {layer}")]
    if error is not None:
        errors = {name: values["quest"] or 0.0 for name, values in error["layers"].items()}
        worst = max(errors, key=lambda name: errors[name])
        text = f"{errors[worst]:.4f} at most, in {worst} (Gaussian: {error['gaussian']:.4f})"
        rows.append((f"{role}, error", text))
    return rows


def _mean(series: dict[str, dict[str, float | None]]) -> str:
    known = [value["mean"] for value in series.values() if value["mean"] is not None]
    return f"{sum(known) / len(known):.3f}" if known else "undefined"
