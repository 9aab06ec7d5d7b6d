from __future__ import annotations

import pytest

import questlm
from questlm.config import GenerationOptions
from questlm.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_new_tokens", 0, "greater than or equal to 1"),
        ("temperature", -1.0, "greater than or equal to 0"),
        ("temperature", float("nan"), "a finite number"),
        ("temperature", float("inf"), "a finite number"),
        ("top_k", 0, "greater than or equal to 1"),
        ("top_k", True, "a number or a word is expected"),
        ("top_p", 0.0, "greater than 0"),
        ("top_p", 1.5, "less than or equal to 1"),
        ("min_p", -0.1, "greater than or equal to 0"),
        ("min_p", 1.1, "less than or equal to 1"),
        ("repetition_penalty", 0, "greater than or equal to 0.001"),
        ("repetition_penalty", 1e300, "less than or equal to 1000"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than"),
        ("stop", ("",), "at least 1 character"),
        ("stop", "end", "a list is expected"),
        ("max_tokens", 5, "unknown setting 'max_tokens'"),
    ],
)
def test_values_out_of_range_are_refused_in_a_sentence(name: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        GenerationOptions(**{name: value})  # type: ignore[arg-type]
    assert name in str(caught.value)


def test_options_cannot_be_changed_but_copied_with_changes() -> None:
    options = questlm.GenerationOptions(seed=1)
    with pytest.raises(ValueError, match="frozen"):
        options.seed = 2
    assert options.model_copy(update={"seed": 2}) == GenerationOptions(seed=2)
