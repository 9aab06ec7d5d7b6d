"""Every error that questlm raises on purpose.

    QuestError
    ├── ConfigError             a setting, flag or combination that cannot be used
    ├── DataError               a corpus, shard or tokenizer that cannot be used
    ├── CheckpointError         a checkpoint or run folder that cannot be used
    ├── ArtifactError           a packed model that is damaged, hostile or of another format
    ├── BackendError            a backend that was asked for by name and cannot run here
    ├── MissingDependencyError  an optional package that is not installed
    └── TrainingError           training cannot go on (a non-finite loss, quantisation not in effect)

The message of each is one sentence for the person at the keyboard: what was wrong, the value, what is allowed, and the
fix. The command line prints it and exits with code 2. Messages contain names and values from files of unknown origin,
so every error cleans and shortens its own message (`cleaned`), and messages quote single values with `quoted`.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

__all__ = [
    "ArtifactError",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "MissingDependencyError",
    "QuestError",
    "TrainingError",
    "cleaned",
    "nearest_name",
    "quoted",
]


class QuestError(Exception):
    """Base class: anything questlm refuses to do, with a message fit for a user and for a terminal."""

    def __init__(self, message: object = "") -> None:
        super().__init__(cleaned(message))


class ConfigError(QuestError, ValueError):
    """A setting, flag or combination of them that cannot be used."""


class DataError(QuestError):
    """A corpus, shard or tokenizer that is missing, damaged or does not fit the model."""


class CheckpointError(QuestError):
    """A checkpoint or run folder that is missing, damaged or belongs to another configuration."""


class ArtifactError(QuestError):
    """A packed model that is damaged, hostile, or of a format this version cannot read."""


class BackendError(QuestError):
    """A backend that was requested explicitly and cannot run here."""


class MissingDependencyError(QuestError, ImportError):
    """An optional package is needed; the message names the exact pip command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; run: pip install 'questlm[{extra}]'"
        )


class TrainingError(QuestError):
    """Training cannot go on."""


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the closest of `allowed`, or '' when nothing is close."""
    matches = difflib.get_close_matches(name[:80], list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def cleaned(text: object, limit: int = 1_000) -> str:
    """`str(text)` on one line of at most `limit` characters, with nothing in it that controls a terminal.

    Line breaks and tabs become spaces. Other control characters, terminal escapes and bidirectional marks come out as
    `\\x..` or `\\u....`. Of a longer text the beginning and the end are kept: the end of a message is what helps.
    """
    whole = str(text)
    if len(whole) > 2 * limit:  # escaping takes time in proportion to the length
        whole = whole[:limit] + whole[-limit:]
    line = "".join(letter if letter.isprintable() else _escaped(letter) for letter in whole)
    head = 2 * limit // 3
    return line if len(line) <= limit else f"{line[:head]} ... {line[head + 5 - limit :]}"


def _escaped(letter: str) -> str:
    return " " if letter in "\n\r\t" else repr(letter)[1:-1]


def quoted(value: Any, limit: int = 80) -> str:
    """`repr(value)` in at most `limit` characters, for a message.

    Control characters, terminal escapes and bidirectional marks come out as `\\x..` or `\\u....`. The time taken does
    not depend on the size of the value, so a nested list that stands for gigabytes is safe to quote.
    """
    text = _Quote(limit).repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class _Quote(reprlib.Repr):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxstring = self.maxother = limit
        self.maxlevel, self.maxlist, self.maxdict, self.maxtuple = 3, 4, 4, 4

    def repr_int(self, value: int, _level: int) -> str:
        # Python refuses to write out integers of more than 4,300 digits.
        return repr(value) if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"

    def repr_PosixPath(self, value: PurePath, level: int) -> str:  # noqa: N802 - `reprlib` finds it by this name
        return self.repr_str(str(value), level)

    repr_WindowsPath = repr_PosixPath  # noqa: N815

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value[: self.maxstring])
