"""Pages that lead to other pages, define words, or show code that the training loop runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from questlm.config import RunConfig
from questlm.training import recipes, train

DOCS = Path(__file__).parents[2] / "docs"


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_the_glossary_has_25_words_in_order() -> None:
    lines = (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines()
    words = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert len(words) == 25
    assert words == sorted(words, key=str.lower)


def test_the_recipe_of_the_page_is_called_in_training(
    tiny_settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "howto" / "optimizers-and-recipes.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, type[recipes.Recipe]] = {}
    exec(code, names)
    recipe = names["HigherDecayAtTheEnd"]
    decays: list[float] = []

    def after_step(self: recipes.Recipe, moment: recipes.Moment) -> None:
        decays.extend(group["weight_decay"] for group in moment.optimizer.groups if group["name"] == "matrices")

    monkeypatch.setattr(recipe, "after_step", after_step)
    monkeypatch.setattr(recipes, "RECIPES", (recipe,))
    train(tiny_settings(), tmp_path / "run")
    assert len(decays) > 5
    assert set(decays[: int(0.9 * len(decays))]) == {0.1}
    assert decays[-1] == 0.3
