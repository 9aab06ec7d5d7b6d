"""Pages that lead to other pages, or define words."""

from __future__ import annotations

from pathlib import Path

from questlm.config import ModelConfig
from questlm.config.presets import PRESETS, preset

DOCS = Path(__file__).parents[2] / "docs"


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_the_readme_is_short_and_leads_to_the_index() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert "(docs/index.md)" in readme


def test_the_table_of_presets_is_that_of_the_code() -> None:
    page = (DOCS / "howto" / "train.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    found = {row[0]: row[1:] for row in rows[2:]}
    expected = {}
    for name in PRESETS:
        settings = preset(name)
        model = ModelConfig(**settings["model"])
        shown = [model.layers, model.hidden, model.heads, f"{model.block_parameters:,}"]
        expected[name] = [*map(str, shown), settings["train"]["lr"]]
    assert {name: [*row[:-1], float(row[-1])] for name, row in found.items()} == expected


def test_the_glossary_has_25_words_in_order() -> None:
    lines = (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines()
    words = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert len(words) == 25
    assert words == sorted(words, key=str.lower)
