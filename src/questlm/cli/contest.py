"""`quest contest`: score packed models as openai/parameter-golf does, and write a submission file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from questlm.cli.options import parse_bytes, print_table
from questlm.errors import ConfigError
from questlm.terminal import say

__all__ = ["contest"]


def contest(
    models: Annotated[list[Path], typer.Argument(help="Packed models, such as one of each seed.", metavar="MODEL")],
    data: Annotated[
        str | None, typer.Option(help="Text or shards, such as 'fineweb_val_*.bin' [default: of training].")
    ] = None,
    sentencepiece: Annotated[
        Path | None, typer.Option(help="SentencePiece model of the shards, by which bytes are counted.")
    ] = None,
    count_code: Annotated[list[Path] | None, typer.Option(help="File that counts too; may be repeated.")] = None,
    budget: Annotated[str, typer.Option(help="Most bytes of model and code.")] = "16MB",
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a window [default: as in training].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Submission file to write, JSON.")] = None,
    name: Annotated[str, typer.Option(help="Name of the submission.")] = "",
    author: Annotated[str, typer.Option(help="Its author.")] = "",
    github_id: Annotated[str, typer.Option(help="The author's account.")] = "",
    blurb: Annotated[str, typer.Option(help="A sentence about it.")] = "",
) -> None:
    """Score packed models as openai/parameter-golf does: bits per byte by its accounting, within a budget of bytes.

    It checks that the counted bytes are those of the text, that probabilities sum to one, and that no prediction sees
    what it predicts.

    Examples:

        quest contest golf-s0.quest golf-s1.quest golf-s2.quest --count-code train.py --out submission.json

        quest contest golf.quest --data 'fineweb_val_*.bin' --sentencepiece fineweb_1024_bpe.model
    """
    from questlm.artifact.budget import Budget
    from questlm.json_files import write_json
    from questlm.trained.contest import Entry, score, submission

    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"{out} cannot be written: the folder {out.parent} does not exist; make it first")
    if len({model.resolve() for model in models}) < len(models):
        raise ConfigError("a model is named twice, and would count as two seeds; name each once")
    limit = Budget.of_files(int(parse_bytes(budget, "--budget")), count_code or ())
    scores = [
        score(model, limit, data, sentencepiece=sentencepiece, seq_len=seq_len, device=device) for model in models
    ]
    today = datetime.now(UTC).date().isoformat()
    result = submission(Entry(name, author, github_id, today, blurb), scores)
    for each in scores:
        rows = [
            ("bits per byte", f"{each.val_bpb:.4f}"),
            ("loss", f"{each.val_loss:.4f} nats a token"),
            ("predicted", f"{each.tokens:,} tokens, {each.text_bytes:,} bytes of text"),
            ("bytes", f"{each.bytes_model:,} + code {each.bytes_code:,} = {each.bytes_total:,} of {limit.limit:,}"),
        ]
        print_table(each.model, rows)
    if len(scores) > 1:
        mean, spread = result["val_bpb"], result["val_bpb_std"]
        say(f"Mean of {len(scores)}: {mean:.4f} bits per byte, standard deviation {spread:.4f}")
    if out is not None:
        write_json(out, result)
        say(f"Wrote {out}")
