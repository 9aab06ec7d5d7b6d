"""`quest demo`: from nothing to a trained, packed, talking model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from questlm.cli.options import fresh_folder, print_table
from questlm.cli.pack import report_rows
from questlm.cli.train import metric_rows, run_training
from questlm.config import GenerationOptions, load_config
from questlm.errors import QuestError
from questlm.terminal import command_text, say, say_piece

if TYPE_CHECKING:
    from questlm.bench import TextSpeed

__all__ = ["demo"]

_GAP_ALLOWED = 1e-5
_PROMPT = "def __init__(self, "
_OPTIONS = GenerationOptions(max_new_tokens=120, temperature=0.6, seed=0)


def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder to make [default: runs/demo].")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of training.")] = 150,
    bits: Annotated[int, typer.Option(help="Bits of weights and activations, 1 to 8.")] = 4,
) -> None:
    """Train a small model on this machine's own Python library, pack it, check the packed model, and let it write.

    Needs no GPU and no network. Example:

        quest demo --bits 2 --seconds 60
    """
    from questlm.bench import text_speed
    from questlm.inference import load
    from questlm.trained.evaluate import evaluate
    from questlm.trained.pack import pack
    from questlm.training import RunFolder
    from questlm.training.new_folder import require_free

    run = out or fresh_folder("demo")
    flags = {"quant": {"weight_bits": bits, "act_bits": bits}, "budget": {"seconds": seconds}}
    config = load_config("nano", flags=flags)
    require_free(RunFolder(run))
    typer.echo(f"1. Train a W{bits}A{bits} model for {seconds:g} s on the Python standard library's sources.")
    record = run_training(config, run)
    assert record.final is not None

    packed = run / "packed"
    say(f"2. Pack it into {packed}, load that with the inference engine, and measure it again.")
    report, result = pack(run, packed), evaluate(packed, device="cpu")
    gap = result.loss - float(record.final["loss"] or 0.0)
    rows = [*metric_rows(result.as_dict()), *report_rows(report), ("round-trip gap", f"{gap:+.2e} nats/token")]
    print_table("the packed model", rows)
    if not abs(gap) <= _GAP_ALLOWED:
        raise QuestError(f"the packed model's loss differs from the trained one's by {gap:+.2e} nats; this is a bug")

    typer.echo(f"3. Let it write. Prompt: {_PROMPT!r}\n")
    say_piece(_PROMPT)
    model = load(packed)
    for piece in model.stream(_PROMPT, _OPTIONS):
        say_piece(piece)
    say_piece("\n\n")
    sides = zip((f"packed W{bits}A{bits}", "float32 in PyTorch"), text_speed(model, _PROMPT), strict=True)
    print_table("speed, on the same tokens", [(name, _speed_text(speed)) for name, speed in sides])
    say(f"Next: {command_text('generate', packed, '--prompt', 'class ')}")
    say("      quest train --preset nano --data your_text.txt --seconds 600")
    say("      quest train --help")


def _speed_text(speed: TextSpeed) -> str:
    first = f"first token after {1e3 * speed.first_token_seconds:.3g} ms"
    return f"{first}, then {speed.tokens_per_second:,.0f} tokens/s"
