"""The public names: each exists, says what it does, and has types that a type checker sees."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import questlm


@pytest.mark.parametrize("name", questlm.__all__)
def test_a_public_name_is_documented_and_typed(name: str) -> None:
    value = getattr(questlm, name)
    assert (value.__doc__ or "").strip()
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
        assert (value.__doc__ or "").strip().splitlines()[0].endswith(".")


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(questlm.__path__[0]) / "py.typed").is_file()
