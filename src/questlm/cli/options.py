"""What several commands share: numbers with suffixes, fresh folders, tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import typer

from questlm.errors import ConfigError, quoted
from questlm.humanize import bytes_text
from questlm.terminal import cell

__all__ = [
    "CacheDtype",
    "Plugins",
    "fresh_folder",
    "load_plugins",
    "parse_bits",
    "parse_bytes",
    "parse_count",
    "parse_seconds",
    "print_table",
    "size",
]

Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="Python file or module with methods or recipes of your own; may be repeated."),
]

CacheDtype = Literal["float32", "bfloat16", "int8"]
"""In what keys and values of past tokens can be kept, by the name of torch's dtype."""

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(text: str, option: str) -> int:
    """A number of things: 5000, 5e6, 5M, 1.5B.

    Raises:
        ConfigError: not such a number, or less than one.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]*)?(?:e[0-9]{1,2})?)\s*([kmbgt]?)\s*", text.lower())
    value = int(Decimal(re.sub("[_,]", "", match.group(1))) * _SUFFIXES[match.group(2)]) if match else 0
    if not 1 <= value < 2**63:
        raise ConfigError(
            f"{option} {quoted(text)} is not a number of at least 1; write it like 5000000, 5e6, 5M or 1.5B"
        )
    return value


def parse_bytes(text: str, option: str) -> float:
    """A number of bytes: 16000000, 16MB, 1.5GiB.

    Raises:
        ConfigError: not such a number, or not above zero.
    """
    # Not pydantic.ByteSize, which reads "1,000,000" as 1 byte and "16MB!!" as 16 MB.
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]*)?(?:e[0-9]{1,2})?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    power = "kmgt".find(match.group(2)) + 1 if match and match.group(2) else 0
    value = float(re.sub("[_,]", "", match.group(1))) * (1024 if match.group(3) else 1000) ** power if match else 0.0
    if not 0 < value < 2**63:
        raise ConfigError(
            f"{option} {quoted(text)} is not a number of bytes above 0; write it like 16000000, 16MB or 1.5GiB"
        )
    return value


def parse_seconds(text: str, option: str) -> float:
    """A time: 5ms, 0.5s, 800us.

    Raises:
        ConfigError: not a time, or not above zero.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(us|ms|s)\s*", text.lower())
    value = float(match.group(1)) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match.group(2)] if match else 0.0
    if not value > 0:
        raise ConfigError(f"{option} {quoted(text)} is not a time above 0; write it like 5ms, 800us or 0.5s")
    return value


def parse_bits(text: str | None) -> int | str | None:
    """A number of bits, or a word such as 'ternary' (the settings decide which are allowed)."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else text


def load_plugins(names: Sequence[str] | None) -> None:
    """Import the plugins that the user names."""
    if names:
        from questlm.plugins import load_plugin

        for name in names:
            load_plugin(name)


def fresh_folder(name: str) -> Path:
    """`runs/name`, or `runs/name-2`, -3, ... where that exists."""
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a table of names and values on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=cell(title, "table.title"), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(cell(name), cell(value))
    Console().print(table)


def size(count: int) -> str:
    """A number of bytes for people: 1,234,567 bytes (1.23 MB)."""
    return f"{count:,} bytes ({bytes_text(count)})" if count >= 1000 else bytes_text(count)
