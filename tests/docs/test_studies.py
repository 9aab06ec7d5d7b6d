"""A study's table speaks of the runs that its script makes, and every one of them is a run that can be made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from questlm import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", ROOT / "studies" / "methods-cpu" / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_methods_study_is_complete(study: ModuleType) -> None:
    result = json.loads((ROOT / "docs" / "results" / "methods-cpu.json").read_text(encoding="utf-8"))
    assert result["losses"].keys() == study.sides().keys()
    assert all(by_seed.keys() == {"0", "1", "2"} for by_seed in result["losses"].values())
    shown = (ROOT / "docs" / "results" / "methods-cpu.md").read_text(encoding="utf-8")
    for name, by_seed in result["losses"].items():
        assert f"| {name.split('/', 1)[1]} | {sum(by_seed.values()) / 3:.3f} |" in shown


def test_every_side_of_the_methods_study_prepares(study: ModuleType) -> None:
    for side in study.sides().values():
        prepare(nn.Sequential(nn.Linear(128, 32, bias=False)), study.settings(side, 0).quant)
