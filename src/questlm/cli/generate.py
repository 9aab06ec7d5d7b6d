"""`quest generate`: let a packed model speak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from questlm.cli.options import CacheDtype
from questlm.config import GenerationOptions
from questlm.humanize import bytes_text
from questlm.terminal import say, say_piece

if TYPE_CHECKING:
    from questlm.inference import TextStream

__all__ = ["generate", "speed_text"]

_DEFAULT = GenerationOptions()


def _flag(name: str, **more: Any) -> Any:
    """The command-line option for one of `GenerationOptions`, with its description as help."""
    description = GenerationOptions.model_fields[name].description or ""
    text = description.partition("; None")[0]  # on a command line, None is to leave the option away
    return typer.Option(help=f"{text[:1].upper()}{text[1:]}.", **more)


def generate(
    artifact: Annotated[Path, typer.Argument(help="Artifact, made by quest pack: a folder or one file.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    max_tokens: Annotated[int, _flag("max_new_tokens", max=1_000_000)] = _DEFAULT.max_new_tokens,
    temperature: Annotated[float, _flag("temperature")] = _DEFAULT.temperature,
    top_k: Annotated[int | None, _flag("top_k")] = _DEFAULT.top_k,
    top_p: Annotated[float | None, _flag("top_p")] = _DEFAULT.top_p,
    min_p: Annotated[float | None, _flag("min_p")] = _DEFAULT.min_p,
    repetition_penalty: Annotated[float, _flag("repetition_penalty")] = _DEFAULT.repetition_penalty,
    seed: Annotated[int | None, _flag("seed")] = _DEFAULT.seed,
    stop: Annotated[list[str] | None, _flag("stop")] = None,
    stop_at_end: Annotated[bool, _flag("stop_at_end")] = _DEFAULT.stop_at_end,
    weights: Annotated[
        Literal["auto", "packed"],
        typer.Option(help="In memory: auto is the fastest here, packed takes no more than on disk."),
    ] = "auto",
    cache_dtype: Annotated[
        CacheDtype, typer.Option(help="In what keys and values of past tokens are kept.")
    ] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the text.")] = False,
) -> None:
    """Continue a prompt, printing each piece of text as it comes, and on stderr how fast it came.

    Examples:

        quest generate model/ --prompt 'def read(path):'

        quest generate model/ --prompt 'import os' --temperature 0 --max-tokens 50

        quest generate model/ --prompt 'Once' --weights packed --cache-dtype int8

        quest generate model/ --prompt 'Once' --top-p 0.9 --repetition-penalty 1.1 --stop 'The end'
    """
    import torch

    from questlm.inference import load

    options = GenerationOptions(
        max_new_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        stop_at_end=stop_at_end,
    )
    model = load(artifact, weights=weights, cache_dtype=getattr(torch, cache_dtype))
    stream = model.stream(prompt, options)
    say_piece(prompt)
    for piece in stream:
        say_piece(piece)
    say_piece("\n")
    if not quiet:
        say(f"{speed_text(stream)}; weights take {bytes_text(model.weight_bytes)} in memory", err=True)


def speed_text(stream: TextStream) -> str:
    """How many tokens came, and how fast, in a line."""
    if stream.first_token_seconds is None:
        return "no tokens: the model ended the text at once"
    count = f"{stream.tokens} token{'' if stream.tokens == 1 else 's'}"
    speed = stream.tokens_per_second
    after = "" if speed is None else f", then {speed:.1f} tokens/s"
    return f"{count}; the first after {stream.first_token_seconds:.3g} s{after}"
