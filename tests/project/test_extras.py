"""What the code imports is what pyproject.toml says that it needs, and each feature's extra brings it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
IMPORTED_AS = {"pyyaml": "yaml", "prometheus-client": "prometheus_client"}
BROUGHT_BY = {"triton": "torch", "PIL": "matplotlib", "anyio": "starlette"}  # what comes with another package


def modules(requirements: list[str]) -> set[str]:
    """The modules that requirements such as 'torch>=2.10' bring."""
    names = [re.split(r"[<>=!\[; ]", requirement, maxsplit=1)[0].lower() for requirement in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}


def imported(upstream_of: str | None = None) -> set[str]:
    """Packages of others that questlm imports, or that one of its packages does with all that it imports."""
    graph = grimp.build_graph("questlm", include_external_packages=True, exclude_type_checking_imports=True)
    found = graph.modules if upstream_of is None else graph.find_upstream_modules(upstream_of, as_package=True)
    return {BROUGHT_BY.get(name, name) for name in found if not name.startswith("questlm")} - sys.stdlib_module_names


def errors_of_missing_packages() -> Iterator[tuple[str, str]]:
    """Package and extra of each MissingDependencyError that names both."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingDependencyError":
                words = [argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)]
                if len(words) == 2:
                    yield str(words[0]), str(words[1])


def test_every_imported_package_is_required_or_an_extra() -> None:
    users = [extra for extra in EXTRAS if extra not in ("dev", "docs", "bench")]
    brought = modules(PROJECT["dependencies"]).union(*(modules(EXTRAS[extra]) for extra in users))
    assert imported() - brought == set()
    assert modules(PROJECT["dependencies"]) - imported() == set(), "no module imports this"


def test_quantising_a_model_needs_torch_and_little_else() -> None:
    assert imported(upstream_of="questlm.quant") == {"torch", "pydantic", "tokenizers", "yaml"}


@pytest.mark.parametrize(("package", "extra"), sorted(set(errors_of_missing_packages())))
def test_the_extra_that_an_error_names_brings_the_package(package: str, extra: str) -> None:
    assert package in modules(EXTRAS[extra])


def test_errors_of_missing_packages_are_found() -> None:
    assert {("matplotlib", "plots"), ("lm_eval", "eval"), ("pandas", "pandas")} <= set(errors_of_missing_packages())
