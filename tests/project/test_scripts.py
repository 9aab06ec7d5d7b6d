"""Every script outside the package can be imported: what it takes from `questlm` is still there."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = {ROOT / "studies" / "better-recipe" / "candidates.py"}
"""They register methods for good when they are run; tests/docs/test_better_recipe.py loads them as plugins."""
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "scripts", "studies")
    for path in (ROOT / folder).rglob("*.py")
    if path not in PLUGINS
)

OPTIONAL = {"lm_eval"}
"""What a script compares with, of no extra that the tests install."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_finds_what_it_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which some set where there is no GPU
    try:
        runpy.run_path(str(script), run_name="imported")
    except ModuleNotFoundError as missing:
        if str(missing.name).partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{missing.name} is not installed")
