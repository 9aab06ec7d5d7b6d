"""What is printed: clean lines, cells as they are, and commands that a shell reads back."""

from __future__ import annotations

import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from questlm.terminal import cell, command_text, say, say_piece

NAMES = ["a b", "it's", 'say "x"', "$(touch hacked)", "-rf", "--help", "a;b", "[bold]", "é", "*"]


def test_a_line_has_nothing_in_it_that_controls_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("wrote \x1b[2J\nnext")
    say("note", err=True)
    assert capsys.readouterr() == ("wrote \\x1b[2J next\n", "note\n")


@pytest.mark.parametrize(("terminal", "shown"), [(False, "a\x1b[31m\n\tb\x07"), (True, "a\\x1b[31m\n\tb\\x07")])
def test_text_of_a_model_is_spelt_out_on_a_terminal_only(
    terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = StringIO()
    out.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", out)
    say_piece("a\x1b[31m\n\tb\x07")
    assert out.getvalue() == shown


@pytest.mark.parametrize("text", ["[bold red]x[/bold red]", "[/]", ":fire:", "\\[x]", "two\nlines"])
def test_a_cell_shows_its_text_as_it_is(text: str) -> None:
    table = Table(title=cell(text), box=None, show_header=False)
    table.add_row(cell(text))
    out = StringIO()
    Console(file=out, width=80).print(table)
    for line in text.split("\n"):
        assert out.getvalue().count(line) == 2


def test_a_cell_is_cleaned() -> None:
    assert str(cell("\x1b]0;title\x07")) == r"\x1b]0;title\x07"


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_a_command_back(name: str) -> None:
    line = command_text("eval", Path(name), "--prompt", name)
    read = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
    path = f"./{name}" if name.startswith("-") else name
    assert read.splitlines() == ["quest", "eval", path, "--prompt", name]


@given(words=st.lists(st.text(), max_size=4))
def test_any_words_are_read_back(words: list[str]) -> None:
    assert shlex.split(command_text(*words)) == ["quest", *words]
