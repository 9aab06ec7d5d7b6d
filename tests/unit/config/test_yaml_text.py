"""Any YAML at all is either a value of plain types or one short ConfigError, soon."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from questlm.config import RunConfig, load_config
from questlm.config.yaml_text import parse_yaml, read_yaml, write_yaml
from questlm.errors import ConfigError
from questlm.sweep import read_grid

BOMB = "[&x0 [a,a,a,a,a,a,a,a,a], " + ", ".join(f"&x{i} [{','.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 22)) + "]"
HOSTILE = {
    "a date that is none": "seed: 2020-13-45",
    "a tag of a number": "budget: !!float z",
    "a tag of a date": "seed: !!timestamp x",
    "a tag of Python": "seed: !!python/object/apply:os.getcwd []",
    "5,000 digits": "seed: " + "9" * 5000,
    "an exponent beyond floats": "train: {lr: 1e999}",
    "3,000 lists": "model: " + "[" * 3000,
    "3,000 keys": "? " * 3000,
    "3,000 indented lists": "model: \n" + "- " * 3000,
    "an alias bomb": f"model: {BOMB}",
    "an alias bomb in a field": f"model: {{layers: {BOMB}}}",
    "a list in itself": "model: &a [*a]",
    "a merge bomb": "a: &a {b: 1}\nc: {<<: [*a, *a]}",
    "a list as key": "? [1, 2]\n: 3",
    "a number as key": "1: 2",
    "a key twice": "seed: 1\nseed: 2",
    "no character": 'seed: "\\U99999999"',
    "half a character": 'init_from: "\\ud800"',
    "a version of 5,000 digits": "%YAML 1." + "9" * 5000 + "\n---\nseed: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "a control character": "seed: \x07",
    "many values": "seed: [" + "1," * 30_000 + "]",
    "large": "#" * 300_000,
}


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def short(problem: object) -> bool:
    return str(problem).isprintable() and len(str(problem)) < 600


@pytest.mark.parametrize(
    "text",
    [pytest.param(text, id=name, marks=[pytest.mark.slow] * (name == "many values")) for name, text in HOSTILE.items()],
)
def test_hostile_settings_are_refused_soon_as_file_and_value_and_grid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    start = time.process_time()
    readers = (
        lambda: load_config(file=file),
        lambda: read_grid(file),
        lambda: load_config(overrides=[f"quant={text}"]),
    )
    for read in readers:
        with pytest.raises(ConfigError) as caught:
            read()
        assert short(caught.value)
    assert time.process_time() - start < 10  # 0.1 s, and 2 s for many values


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
@pytest.mark.parametrize("what", ["pipe", "/dev/zero"])
def test_only_plain_files_are_read(what: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda path: load_config(file=path), read_grid):
        with pytest.raises(ConfigError, match="not a plain file"):
            read(tmp_path / what)


def test_a_set_key_of_thousands_of_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="write it as --set") as caught:
        load_config(overrides=["a." * 5000 + "b=1"])
    assert short(caught.value)


def test_dates_are_text_and_aliases_are_written_out() -> None:
    assert parse_yaml("[2026-01-01, 12:30:45, 1:30, 0b1, 010]", "x") == ["2026-01-01", "12:30:45", "1:30", "0b1", "010"]
    shared = parse_yaml("{a: &x {b: 1}, c: *x}", "x")
    assert shared == {"a": {"b": 1}, "c": {"b": 1}}
    assert shared["a"] is not shared["c"]


def test_merge_keys() -> None:
    base = "base: &base {a: 1, b: {c: 2}}\nmore: &more {a: 3, d: 4}\n"
    assert parse_yaml(base + "own: {b: 5, <<: *base}", "x")["own"] == {"a": 1, "b": 5}
    assert parse_yaml(base + "own: {<<: [*base, *more], d: 6}", "x")["own"] == {"a": 1, "b": {"c": 2}, "d": 6}
    for wrong in ("{<<: 1}", "{<<: [1]}", "{<<: text}", "{<<: }"):
        with pytest.raises(ConfigError, match="<< takes keys and values"):
            parse_yaml(wrong, "x")


@pytest.mark.parametrize("value", ["*.txt", "[x]*.txt", "@home", "%x", "!x"])
def test_text_that_yaml_takes_for_something_else_is_given_in_quotes(value: str) -> None:
    with pytest.raises(ConfigError, match=r"put text that is no YAML into quotes: --set 'data\.source=\"\.\.\.\"'"):
        load_config(overrides=[f"data.source={value}"])
    assert load_config(overrides=[f'data.source="{value}"']).data.source == value


def test_numbers() -> None:
    assert parse_yaml("[1_000, 0x1F, -3, +4, 0, 6e-4, .5, 1., -1_0.5E+2]", "x") == [
        1000, 31, -3, 4, 0, 6e-4, 0.5, 1.0, -1050.0,
    ]  # fmt: skip


PIECES = st.sampled_from(
    [
        *(
            "a: b\n",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            ": ",
            "? ",
            "&x ",
            "*x ",
            "!!int ",
            "!!timestamp ",
            "!!python/name:os ",
        ),
        *(
            "!<",
            "%YAML 1.2\n",
            "---\n",
            "...\n",
            "<<: ",
            "1",
            "-0x_",
            "1e9",
            "9" * 99,
            "2020-13-45",
            '"',
            "'",
            "\\x",
            "|",
        ),
        *(
            "\\U00ffffff",
            "\\ud800",
            ">",
            ">+9\n",
            "|2-\n",
            "#",
            "\n",
            "  ",
            "\t",
            "\ufeff",
            "\0",
            "\x85",
            "é",
            "😀",
            "~",
        ),
    ]
)


@pytest.mark.slow
@settings(deadline=2000, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60))
@example(text="? - - - - - a")
def test_any_text_is_a_plain_value_or_a_config_error(text: str) -> None:
    try:
        value = parse_yaml(text, "the text")
    except ConfigError as problem:
        assert short(problem)
    else:
        assert is_plain(value)


@settings(deadline=2000, max_examples=100)
@given(content=st.binary(max_size=80) | st.lists(PIECES, max_size=20).map(lambda parts: "".join(parts).encode()))
def test_any_bytes_are_settings_or_a_config_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    for read in (lambda: load_config(file=file), lambda: read_yaml(file, "config file")):
        try:
            assert isinstance(read(), RunConfig | dict)
        except ConfigError as problem:
            assert short(problem)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=2000)
@given(value=VALUES)
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    assert parse_yaml(write_yaml(value), "the text") == value
