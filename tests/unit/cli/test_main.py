"""What a command prints where stdout has an encoding that lacks some letters."""

from __future__ import annotations

import io
import sys
from importlib import import_module

import pytest

from questlm.terminal import say, say_piece


def test_letters_that_stdout_lacks_are_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("questlm.cli.main")

    def command(words: list[str]) -> int:
        say("runs/é")
        say_piece("日")
        return 0

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(module, "_run", command)
    with pytest.raises(SystemExit) as ending:
        module.main()
    assert ending.value.code == 0
    assert written.getvalue() == rb"runs/\xe9" + b"\n" + rb"\u65e5"
