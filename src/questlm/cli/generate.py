"""`quest generate`: let a packed model speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questlm.terminal import say_piece

__all__ = ["generate"]


def generate(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, made by quest pack.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.", max=1_000_000)] = 200,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k likeliest.")] = 50,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest that hold this much.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
) -> None:
    """Continue a prompt, printing each piece of text as it comes.

    Examples:

        quest generate model/ --prompt 'def read(path):'

        quest generate model/ --prompt 'import os' --temperature 0 --max-tokens 50
    """
    from questlm.inference import load

    model = load(artifact)
    stream = model.stream(
        prompt, max_new_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    say_piece(prompt)
    for piece in stream:
        say_piece(piece)
    say_piece("\n")
