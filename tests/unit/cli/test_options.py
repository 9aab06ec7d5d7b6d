"""Numbers with suffixes, fresh folders and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from questlm.cli.options import fresh_folder, parse_bits, parse_count, print_table, size
from questlm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("5000", 5000),
        ("5_000", 5000),
        ("5,000", 5000),
        ("5e6", 5_000_000),
        ("5M", 5_000_000),
        ("5m", 5_000_000),
        ("1.5B", 1_500_000_000),
        ("2k", 2000),
        ("3G", 3 * 10**9),
        ("1T", 10**12),
        (" 7 k ", 7000),
        ("1.5e3k", 1_500_000),
    ],
)
def test_counts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text, "--tokens") == count


@pytest.mark.parametrize("text", ["", "0", "0M", "0.4", "abc", "-5", "5X", "5MM", "1e-3", "nan", "inf", "5 000", "M"])
def test_what_is_no_count_is_refused_with_the_option_and_the_value(text: str) -> None:
    with pytest.raises(ConfigError, match="--tokens") as caught:
        parse_count(text, "--tokens")
    assert repr(text) in str(caught.value)
    assert "5M" in str(caught.value)


def test_a_large_whole_number_is_exact() -> None:
    assert parse_count("9007199254740993", "--tokens") == 9_007_199_254_740_993


@pytest.mark.parametrize(
    ("text", "bits"),
    [("4", 4), ("16", 16), ("ternary", "ternary"), ("x", "x"), ("-1", "-1"), ("9" * 5000, "9" * 5000), (None, None)],
)
def test_bits_are_numbers_or_words(text: str | None, bits: int | str | None) -> None:
    assert parse_bits(text) == bits


def test_fresh_folders_count_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/a", "runs/a-2", "runs/a-3"):
        assert fresh_folder("a") == Path(expected)
        Path(expected).mkdir(parents=True)
    assert fresh_folder("b") == Path("runs/b")
    assert not Path("runs/b").exists()


def test_tables_show_every_value_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 200
    print_table("title", [("name", long), ("[bold]not markup", "1")])
    out = capsys.readouterr().out
    assert out.startswith("title")
    assert out.count("x") == 200


def test_tables_show_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("run runs/[a]", [("name", "runs/[b]/packed")])
    out = capsys.readouterr().out
    assert "runs/[a]" in out
    assert "runs/[b]/packed" in out


def test_sizes_are_exact_and_readable() -> None:
    assert size(1_234_567) == "1,234,567 bytes (1.23 MB)"
