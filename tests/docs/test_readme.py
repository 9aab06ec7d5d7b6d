"""What the documents say can be done, can be done: their code runs, their commands parse, their links lead somewhere.

A block tagged ```python notest is not run. Blocks run in a temporary folder that holds a packed model called `model`,
and the page's blocks tagged ```python NAME.py as files of that name; else each stands alone.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from questlm.cli.main import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "configs" / "README.md"]
EXISTING = [path for path in DOCUMENTS if path.exists()]  # that README.md does is a test of its own
FENCE = re.compile(r"^(?P<indent> *)```(?P<tag>[^\n`]*)\n(?P<body>.*?)^ *```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    path: Path
    line: int
    tag: str
    body: str


def _blocks() -> Iterator[Block]:
    for path in EXISTING:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            yield Block(
                path, text[: match.start()].count("\n") + 1, match["tag"].strip(), textwrap.dedent(match["body"])
            )


def _commands() -> Iterator[tuple[str, str]]:
    """(place, command line) of each `quest ...` in a shell block."""
    for block in _blocks():
        if block.tag not in ("bash", "sh", "shell", "console"):
            continue
        for line in block.body.replace("\\\n", " ").splitlines():
            is_prompt = line.lstrip().startswith("$ ")
            command = line.strip().removeprefix("$ ").removeprefix(".venv/bin/").replace("python -m questlm", "quest")
            if command.startswith("quest") and (is_prompt or block.tag != "console"):
                yield f"{block.path.relative_to(ROOT)}:{block.line}", command


def _places(blocks: list[Block]) -> list[str]:
    return [f"{block.path.relative_to(ROOT)}:{block.line}" for block in blocks]


PYTHON = [block for block in _blocks() if block.tag == "python"]
FILES = [block for block in _blocks() if re.fullmatch(r"python \w+\.py", block.tag)]
COMMANDS = list(_commands())


def parse(command: str) -> None:
    """Let the command line parse `quest ...` without running it."""
    words = list(itertools.takewhile(lambda word: word not in ("|", "&&", "||", ";", ">"), _words(command)))
    name = words[1] if len(words) > 1 else "--help"
    if name != "--help":
        group = typer.main.get_command(app)
        assert name in group.commands, f"No such command {name!r}"  # type: ignore[attr-defined]
        group.commands[name].make_context(name, words[2:])  # type: ignore[attr-defined]


def _words(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    quoted = {text for _, text in re.findall(r"""(['\"])(.*?)\1""", command)}
    # The shell would make several words of it, and most of our options take one.
    assert not [word for word in words if "*" in word and word not in quoted], f"unquoted * in: {command}"
    return words


def test_the_readme_shows_both_commands_and_a_library_example() -> None:
    text = README.read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    assert any(block.path == README for block in PYTHON)
    assert any(place.startswith("README.md") for place, _ in COMMANDS)


@pytest.mark.parametrize("block", PYTHON, ids=_places(PYTHON))
def test_python_in_a_document_runs(
    block: Block,
    packed_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forget_plugins: Callable[[], None],
) -> None:
    shutil.copytree(packed_model, tmp_path / "model")
    for file in FILES:
        if file.path == block.path:
            (tmp_path / file.tag.removeprefix("python ")).write_text(file.body, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * block.line + block.body, str(block.path), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("place", "command"), COMMANDS)
def test_a_command_in_a_document_parses(place: str, command: str) -> None:
    parse(command)


@pytest.mark.parametrize("path", EXISTING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_a_document_lead_to_files(path: Path) -> None:
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose)
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    missing = [target for target in local if not (path.parent / target).exists()]
    assert not missing


def test_a_command_that_does_not_parse_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("quest train --no-such-option 3")
    with pytest.raises(Exception, match="No such command"):
        parse("quest trian")
