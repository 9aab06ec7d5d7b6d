"""Importing is quick and brings no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

import questlm


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# In one process, from the lightest on: the last line that says [] names the last module that is light.
LIGHT = ("questlm", "questlm.errors", "questlm.files", "questlm.grid", "questlm.config", "questlm.artifact.format")
PLANNING = ("questlm.scaling", "questlm.scaling.plan", "questlm.quant.layer_formats")


def imported_after_each(modules: Sequence[str], heavy: Sequence[str]) -> str:
    code = f"import sys, importlib\nfor name in {modules}:\n    importlib.import_module(name)\n"
    return run(f"{code}    print(name, sorted(set({heavy}) & set(sys.modules)))")


def test_these_import_no_torch():
    heavy = ("torch", "numpy", "transformers", "datasets", "triton", "pyarrow", "tokenizers", "safetensors")
    assert imported_after_each(LIGHT, heavy).splitlines() == [f"{name} []" for name in LIGHT]


def test_planning_imports_no_torch():
    assert imported_after_each(PLANNING, ("torch",)).splitlines() == [f"{name} []" for name in PLANNING]
    code = (
        "import sys; from questlm.scaling.size import packed_bytes; from questlm.config import ModelConfig, QuantSpec; "
    )
    code += "packed_bytes(ModelConfig(vocab_size=99), QuantSpec()); print('torch' in sys.modules)"
    assert run(code) == "False"


def test_running_imports_no_compiler():
    """torch's compiler takes longer to import than torch."""
    modules = ("questlm.ops", "questlm.quant", "questlm.inference")
    assert imported_after_each(modules, ("torch._dynamo",)).splitlines() == [f"{name} []" for name in modules]


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
