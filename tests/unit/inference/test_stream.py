from __future__ import annotations

from collections.abc import Iterator

import pytest

from questlm.inference import stream
from questlm.inference.stream import TextStream
from questlm.inference.text import TextDecoder


class Letters:
    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(stream.time, "perf_counter", lambda: now[0])
    return now


def arriving(text: str, clock: list[float]) -> Iterator[int]:
    """The first letter after 5 seconds, each other after half a second."""
    for index, letter in enumerate(text):
        clock[0] += 0.5 if index else 5
        yield ord(letter)


def of(text: str, clock: list[float], stop: tuple[str, ...] = ()) -> TextStream:
    return TextStream(arriving(text, clock), TextDecoder(Letters(), [], stop))  # type: ignore[arg-type]


def test_it_says_how_fast_tokens_came(clock: list[float]) -> None:
    pieces = of("abcde", clock)
    assert (pieces.tokens, pieces.first_token_seconds, pieces.tokens_per_second) == (0, None, None)
    assert next(pieces) == "a"
    assert (pieces.tokens, pieces.first_token_seconds, pieces.tokens_per_second) == (1, 5, None)
    assert list(pieces) == ["b", "c", "d", "e"]
    assert (pieces.tokens, pieces.first_token_seconds, pieces.tokens_per_second) == (5, 5, 2)


def test_it_ends_with_a_stop_string_whose_tokens_count(clock: list[float]) -> None:
    pieces = of("abcde", clock, stop=("cd",))
    assert list(pieces) == ["a", "b"]
    assert pieces.tokens == 4


def test_nothing_may_come(clock: list[float]) -> None:
    pieces = of("", clock)
    assert list(pieces) == []
    assert pieces.first_token_seconds is None
