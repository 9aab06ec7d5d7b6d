"""What is printed for people: lines and table cells without control characters, and commands that can be copied.

Names of files, and values in them, come from anywhere: a folder may be called `[bold]`, a record may hold escape codes.
"""

from __future__ import annotations

import shlex
import sys
import unicodedata
from pathlib import PurePath
from typing import TYPE_CHECKING

from questlm.errors import cleaned

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["cell", "command_text", "say", "say_piece"]


def say(line: object, err: bool = False) -> None:
    """Print one line on stdout, or on stderr, without anything in it that controls a terminal."""
    print(cleaned(line), file=sys.stderr if err else sys.stdout, flush=True)


def say_piece(text: str) -> None:
    """Print text of a model without a line end: as it is into a file or pipe, on a terminal without its controls."""
    if sys.stdout.isatty():
        text = "".join(letter if _is_text(letter) else repr(letter)[1:-1] for letter in text)
    print(text, end="", flush=True)


def _is_text(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs")


def cell(text: object, style: str = "") -> Text:
    """Text for a table of rich, which takes neither `[...]` for a style nor `:...:` for a picture in it."""
    from rich.text import Text

    return Text("\n".join(cleaned(line) for line in str(text).split("\n")), style=style)


def command_text(*words: str | PurePath) -> str:
    """The command `quest WORDS` as a shell reads it back. Paths are given as such: one may begin with a dash."""
    return shlex.join(["quest", *(_as_path(word) if isinstance(word, PurePath) else word for word in words)])


def _as_path(path: PurePath) -> str:
    return f"./{path}" if str(path).startswith("-") else str(path)
