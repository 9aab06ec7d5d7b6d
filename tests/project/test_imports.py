"""Importing is quick and brings no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

import questlm


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "module",
    ["questlm", "questlm.config", "questlm.errors", "questlm.files", "questlm.grid", "questlm.artifact.format"],
)
def test_these_import_no_torch(module):
    heavy = "{'torch', 'numpy', 'transformers', 'datasets', 'triton', 'pyarrow', 'tokenizers', 'safetensors'}"
    assert run(f"import sys; import {module}; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize("module", ["questlm.scaling", "questlm.scaling.plan", "questlm.quant.layer_formats"])
def test_planning_imports_no_torch(module):
    code = f"import sys; import {module}; from questlm.scaling.size import packed_bytes; "
    code += "from questlm.config import ModelConfig, QuantSpec; packed_bytes(ModelConfig(vocab_size=99), QuantSpec())"
    assert run(f"{code}; print('torch' in sys.modules)") == "False"


@pytest.mark.slow
@pytest.mark.parametrize("use", ["import questlm.training", "from questlm import load; load"])
def test_training_and_running_import_no_scipy(use):
    assert run(f"import sys; {use}; print('scipy' in sys.modules)") == "False"


def test_import_takes_less_than_a_second_of_cpu_time():
    code = "import time; start = time.process_time(); import questlm; print(time.process_time() - start)"
    assert float(run(code)) < 1.0


def test_the_public_names_are_all_there():
    for name in ("Llama", "prepare", "restore", "QuantSpec", "RunConfig", "load_config"):
        assert name in questlm.__all__
        assert getattr(questlm, name).__name__ == name
    assert set(questlm.__all__) <= set(dir(questlm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        questlm.nothing  # noqa: B018


def test_every_package_lists_names_that_exist():
    for package in ("config", "ops", "quant", "models"):
        module = getattr(questlm, package)
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def circle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of modules that import each other, or nothing."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as problem:
        return list(problem.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("questlm", exclude_type_checking_imports=True)
    assert len(graph.modules) > 200
    assert circle({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
