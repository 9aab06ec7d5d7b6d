"""Plugins: what they register, what is refused, and that nothing is loaded unless the user names it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from questlm import plugins
from questlm.errors import ConfigError
from questlm.plugins import Table, load_plugin, loaded_plugin

GOOD = """
from questlm import plugins
plugins._tables[-1].register("mine", 3)
"""


@pytest.fixture(autouse=True)
def _forget(forget_plugins: Callable[[], None]) -> None:
    """No test leaves a plugin behind."""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table[int]:
    """A table of numbers, the last of all tables."""
    monkeypatch.setattr(plugins, "_tables", list(plugins._tables))
    return Table("number", "questlm.numbers", lambda value: isinstance(value, int), "an int", {"one": 1})


def written(folder: Path, source: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(source, encoding="utf-8")
    return path


def test_a_file_registers_under_its_name_and_hash(table: Table[int], tmp_path: Path) -> None:
    plugin = load_plugin(written(tmp_path, GOOD))
    assert (plugin.name, plugin.kind) == ("mine.py", "file")
    assert plugin.sha256 is not None
    assert table.find("mine") == 3
    assert table.plugins == {"mine": plugin}
    assert loaded_plugin("mine.py") == plugin
    assert load_plugin(str(tmp_path / "mine.py")) == plugin  # not run again, which would register twice


def test_a_module_is_imported_by_name(table: Table[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, GOOD, "numbers_of_mine.py")
    monkeypatch.syspath_prepend(tmp_path)
    plugin = load_plugin("numbers_of_mine")
    assert (plugin.name, plugin.kind, plugin.sha256) == ("numbers_of_mine", "module", None)
    assert table.plugins["mine"] == plugin


def test_another_file_of_the_same_name_is_refused(table: Table[int], tmp_path: Path) -> None:
    load_plugin(written(tmp_path, GOOD))
    written(tmp_path, GOOD.replace("3", "4"))
    with pytest.raises(ConfigError, match="loaded already"):
        load_plugin(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = x / 0\n", "mine.py cannot be used: line 2: ZeroDivisionError: division by zero"),
        ("def (:\n", "mine.py cannot be used: SyntaxError"),
        (GOOD.replace("mine", "one"), "there is a number 'one' already"),
        (GOOD.replace("mine", "a/b"), "'a/b' cannot be the name of a number"),
        (GOOD.replace("3", "'three'"), "the number 'mine' is a str, not an int"),
        (GOOD + "raise RuntimeError('late')\n", "line 4: RuntimeError: late"),
    ],
)
def test_a_plugin_that_fails_says_where_and_leaves_nothing(
    source: str, message: str, table: Table[int], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_plugin(written(tmp_path, source))
    assert message in str(refusal.value)
    assert dict(table) == {"one": 1}
    assert table.plugins == {}
    assert loaded_plugin("mine.py") is None
    assert "questlm_plugin_mine" not in sys.modules


def test_annotations_in_a_plugin_are_the_objects_that_they_name(table: Table[int], tmp_path: Path) -> None:
    load_plugin(written(tmp_path, GOOD + "def double(x: int): ...\nassert double.__annotations__ == {'x': int}\n"))


@pytest.mark.parametrize("name", ["absent.py", "~no.such-user/mine.py", "no/such/file", "no_such_module_of_mine"])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be (read|used)"):
        load_plugin(name)


def test_an_unknown_name_lists_what_there_is(table: Table[int], tmp_path: Path) -> None:
    load_plugin(written(tmp_path, GOOD))
    with pytest.raises(ConfigError, match=r"no number 'mime'\. Did you mean 'mine'\? There are: one, mine\. One of"):
        table.find("mime")


@dataclass
class _Package:
    name: str


def test_of_what_installed_packages_offer_only_the_one_asked_for_is_loaded(
    table: Table[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "two = 2\n", "numbers_offered.py")
    written(tmp_path, "raise SystemExit('it was loaded')\n", "numbers_not_asked_for.py")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("two", "numbers_offered:two", table.group),
        EntryPoint("text", "numbers_offered:__name__", table.group),
        EntryPoint("three", "numbers_not_asked_for:three", table.group),
    ]
    for point in points:
        vars(point).update(dist=_Package("numbers-package"))

    def offered(**keys: Any) -> EntryPoints:
        return EntryPoints(points).select(**keys)

    monkeypatch.setattr(plugins, "entry_points", offered)
    assert list(table.offered()) == ["two", "text", "three"]
    with pytest.raises(ConfigError, match="There are: one, two, text, three"):
        table.find("four")
    assert "numbers_offered" not in sys.modules
    assert table.find("two") == 2
    assert (table.plugins["two"].name, table.plugins["two"].kind) == ("numbers-package", "package")
    with pytest.raises(ConfigError, match="numbers-package cannot be used: the number 'text' is a str, not an int"):
        table.find("text")
