"""Which warnings fail a test: those that our code causes, not those that libraries raise about themselves."""

from __future__ import annotations

import warnings
from types import FunctionType

import pytest


def _warner(module: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> FunctionType:
    """A function of `module` that calls what it is given, or warns where it is given nothing."""
    namespace = {"__name__": module, "warnings": warnings, "category": category, "stacklevel": stacklevel}
    source = "def call(f=None):\n    f() if f else warnings.warn('changed', category, stacklevel=stacklevel)\n"
    exec(source, namespace)
    call = namespace["call"]
    assert isinstance(call, FunctionType)
    return call


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["questlm", "questlm.ops.matmul", "tests.unit.test_x", "helpers.oracle", "__main__"])
def test_a_warning_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="changed"):
        _warner(module, category)()


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, DeprecationWarning, FutureWarning])
@pytest.mark.parametrize(
    "module", ["torch._dynamo.guards", "triton.runtime.interpreter", "ast", "questlmx", "testsuite"]
)
def test_a_warning_of_a_library_about_itself_is_not(module: str, category: type[Warning]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        _warner(module, category)()
    assert [warning.category for warning in seen] == [category]


def test_a_warning_of_a_library_about_its_caller_is_an_error_where_we_are_the_caller() -> None:
    library = _warner("torch.nn", stacklevel=2)
    with pytest.raises(UserWarning, match="changed"):
        _warner("questlm.models.llama")(library)
    with pytest.raises(UserWarning, match="changed"):
        library()


@pytest.mark.parametrize("category", [ResourceWarning, pytest.PytestUnraisableExceptionWarning])
def test_a_file_left_open_is_an_error_whoever_runs_when_it_is_collected(category: type[Warning]) -> None:
    with pytest.raises(category, match="changed"):
        _warner("torch.nn", category)()
