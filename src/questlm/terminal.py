"""Print lines and table cells without control characters, and commands that can be copied.

File names and values come from untrusted places: a folder may be called `[bold]`, a record may contain escape codes.
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
    """Print one line on stdout, or on stderr, without terminal control characters."""
    print(cleaned(line), file=sys.stderr if err else sys.stdout, flush=True)


def say_piece(text: str) -> None:
    """Print text of a model without a line end; on a terminal without control characters, otherwise unchanged."""
    if sys.stdout.isatty():
        text = "".join(letter if _is_text(letter) else repr(letter)[1:-1] for letter in text)
    print(text, end="", flush=True)


def _is_text(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs")


def cell(text: object, style: str = "") -> Text:
    """Return text for a table of rich, in which `[...]` is no style and `:...:` no emoji."""
    from rich.text import Text

    return Text("\n".join(cleaned(line) for line in str(text).split("\n")), style=style)


def command_text(*words: str | PurePath) -> str:
    """Return the command `quest WORDS`, quoted for a shell. Pass paths as Path: one may begin with a dash."""
    return shlex.join(["quest", *(_as_path(word) if isinstance(word, PurePath) else word for word in words)])


def _as_path(path: PurePath) -> str:
    return f"./{path}" if str(path).startswith("-") else str(path)
