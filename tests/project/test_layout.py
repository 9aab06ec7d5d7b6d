"""Where tests lie, and how long files and functions may be.

From a source file follows the place of its test: `src/questlm/a/b.py` is tested by `tests/unit/a/test_b.py`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE, UNIT = ROOT / "src" / "questlm", ROOT / "tests" / "unit"
FOLDERS = {"contract", "docs", "fuzz", "gpu", "helpers", "integration", "parity", "project", "unit"}


def misplaced(unit: Path, source: Path) -> list[str]:
    """Test files below `unit` without a source file: test_b.py is of b.py or b.c, test_init.py of __init__.py."""
    wrong = []
    for test in sorted(unit.rglob("*.py")):
        if test.name == "conftest.py":
            expected = [source / test.parent.relative_to(unit)]
        else:
            name = test.stem.removeprefix("test_")
            folder = source / test.parent.relative_to(unit)
            expected = [folder / f"{stem}{end}" for stem in (name, f"__{name}__") for end in (".py", ".c")]
        if not any(path.exists() for path in expected):
            wrong.append(str(test.relative_to(unit)))
    return wrong


def test_every_unit_test_mirrors_a_source_file() -> None:
    assert misplaced(UNIT, SOURCE) == [], "see CONTRIBUTING.md: where a test lives"


def test_tests_are_in_the_folders_that_contributing_names() -> None:
    tests = ROOT / "tests"
    assert {path.relative_to(tests).parts[0] for path in tests.rglob("*.py")} == FOLDERS | {"conftest.py"}
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for name in sorted(FOLDERS) if f"`{name}/`" not in guide] == []


@pytest.mark.parametrize(
    ("test", "found"), [("a/test_b.py", True), ("a/test_init.py", True), ("a/test_k.py", True), ("test_b.py", False)]
)
def test_the_place_is_derived_from_the_source(test: str, found: bool, tmp_path: Path) -> None:
    for name in ("a/__init__.py", "a/b.py", "a/k.c"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path = tmp_path / "unit" / test
    path.parent.mkdir(parents=True)
    path.touch()
    assert misplaced(tmp_path / "unit", tmp_path / "source") == ([] if found else [test])


def test_source_files_and_functions_are_short() -> None:
    """A file has at most 400 lines and a function at most 60, so that each can be read at once (CONTRIBUTING.md)."""
    long = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found = [(text.count("\n"), 400, "the file")]
        functions = (
            node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        found += [((node.end_lineno or 0) - node.lineno + 1, 60, node.name) for node in functions]
        long += [f"{path.relative_to(SOURCE)}: {name}, {lines} lines" for lines, most, name in found if lines > most]
    assert long == []


def test_the_places_that_contributing_names_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = guide.split("## Where to add what")[1].split("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")]
    named = [word for row in rows for word in re.findall(r"`([\w/]+(?:/|\.)\w+)`", row) if not word[0].isupper()]
    assert len(named) > 20
    assert [name for name in named if not (SOURCE / name).exists() and not (ROOT / name).exists()] == []
