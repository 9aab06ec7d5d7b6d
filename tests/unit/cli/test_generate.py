from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

from questlm.cli.generate import generate, speed_text
from questlm.config import GenerationOptions


@pytest.mark.parametrize(
    ("tokens", "first", "speed", "expected"),
    [
        (0, None, None, "no tokens: the model ended the text at once"),
        (1, 0.12345, None, "1 token; the first after 0.123 s"),
        (128, 1.5, 23.456, "128 tokens; the first after 1.5 s, then 23.5 tokens/s"),
    ],
)
def test_speed_is_said_in_a_line(tokens: int, first: float | None, speed: float | None, expected: str) -> None:
    stream = SimpleNamespace(tokens=tokens, first_token_seconds=first, tokens_per_second=speed)
    assert speed_text(stream) == expected  # type: ignore[arg-type]


def test_every_option_has_a_flag_with_the_same_default() -> None:
    parameters = inspect.signature(generate).parameters
    for name, field in GenerationOptions.model_fields.items():
        default = parameters["max_tokens" if name == "max_new_tokens" else name].default
        assert (default or ()) == (field.default or ()) if name == "stop" else default == field.default
