"""The site is built from a copy of the pages, in which every link leads where it leads in the repository."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_pages_and_what_they_link_are_copied_to_their_own_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    root = tmp_path / "repository"
    texts = {
        "README.md": "[guide](docs/guide.md) [site](https://example.org/x.md) [gone](gone.json)\n",
        "docs/guide.md": '[record](../benchmarks/speed.json) <img src="curve.svg">\n```\n[no](code.py)\n```\n',
        "docs/curve.svg": "<svg/>",
        "docs/code.py": "",
        "benchmarks/speed.json": "{}",
        "benchmarks/other.json": "{}",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    importlib.import_module("build_docs").stage(root, tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    assert copied == {"README.md", "docs/guide.md", "docs/curve.svg", "benchmarks/speed.json"}
    start = (tmp_path / "copy" / "README.md").read_text()
    assert start.startswith(texts["README.md"]) and ":caption: How to\n" in start
