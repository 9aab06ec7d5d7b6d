"""The exception tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from questlm import errors
from questlm.errors import MissingDependencyError, QuestError, cleaned, nearest_name, quoted


def test_all_exports_every_public_name():
    own = {name for name, value in vars(errors).items() if getattr(value, "__module__", None) == errors.__name__}
    assert set(errors.__all__) == {name for name in own if not name.startswith("_")}


def test_every_error_is_a_quest_error_and_stands_in_the_drawing():
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert len(found) == 8
    for error in found:
        assert issubclass(error, QuestError)
        assert error.__name__ in errors.__doc__


@pytest.mark.parametrize(("error", "builtin"), [("ConfigError", ValueError), ("MissingDependencyError", ImportError)])
def test_errors_are_also_what_plain_python_would_raise(error, builtin):
    assert issubclass(getattr(errors, error), builtin)


def test_a_missing_package_names_the_exact_command():
    message = str(MissingDependencyError("datasets", "hf", "reading 'hf:c4'"))
    assert message.startswith("reading 'hf:c4' needs the package 'datasets'")
    assert "pip install 'questlm[hf]'" in message


@pytest.mark.parametrize(
    ("name", "hint"), [("qest", " Did you mean 'quest'?"), ("lsqq", " Did you mean 'lsq'?"), ("zzz", ""), ("", "")]
)
def test_nearest_name_helps_only_when_something_is_near(name, hint):
    assert nearest_name(name, ["quest", "lsq", "pact"]) == hint


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("word", "'word'"),
        (None, "None"),
        (2**200, str(2**200)),
        ("red \x1b[31m", r"'red \x1b[31m'"),
        ("left\u202eright", r"'left\u202eright'"),
        ([1, 2], "[1, 2]"),
        ({"a": b"b"}, "{'a': b'b'}"),
    ],
)
def test_a_quoted_value_is_readable_and_clean(value, text):
    assert quoted(value) == text


def test_a_quoted_value_is_short_whatever_its_size():
    bomb: list[object] = ["a"] * 9
    for _ in range(40):
        bomb = [bomb] * 9  # stands for 9 ** 41 words
    for value in (10**5000, "x" * 10**6, b"x" * 10**6, bomb, {str(i): "y" * 1000 for i in range(1000)}):
        assert len(quoted(value)) <= 80
    assert len(quoted("x" * 10**6, limit=200)) == 200


@given(text=st.text(max_size=300), limit=st.integers(40, 200))
def test_a_cleaned_text_is_one_short_printable_line(text, limit):
    line = cleaned(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
    assert cleaned(line, limit) == line
    if text.isprintable() and len(text) <= limit:
        assert line == text


@given(value=st.recursive(st.text() | st.integers() | st.binary() | st.none(), st.lists, max_leaves=20))
def test_any_quoted_value_is_one_short_printable_line(value):
    assert quoted(value).isprintable()
    assert len(quoted(value)) <= 80


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\tand more", "two lines and more"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("file\u202etxt.exe", r"file\u202etxt.exe"),
        ("half a pair \ud800", r"half a pair \ud800"),
        ("naïve 日本語", "naïve 日本語"),
    ],
)
def test_what_would_control_a_terminal_is_spelt_out(text, line):
    assert cleaned(text) == line
    assert str(QuestError(text)) == line


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = str(errors.ConfigError(f"the value {'x' * 10**7} cannot be used; leave it away"))
    assert len(message) <= 1_000
    assert message.startswith("the value xxx")
    assert message.endswith("xxx cannot be used; leave it away")


def test_a_path_is_quoted_as_text():
    assert quoted(Path("runs/a b")) == "'runs/a b'"
