from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from questlm.inference.text import TextDecoder, until_stop

TEXTS = ["naïve 日本語 🙂🙃 end", "🙂", "a\ufffdb", "日", "e\u0301 🏳️\u200d🌈"]


def pieces_of(tokenizer: Tokenizer, prompt: list[int], ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    decoder = TextDecoder(tokenizer, prompt, stop)
    pieces = [decoder.add(token) for token in ids]
    return [piece for piece in [*pieces, decoder.finish()] if piece]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_character_of_several_tokens_comes_whole(tokenizer_json: str, text: str, split: int) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    prompt = tokenizer.encode("é: ").ids
    ids = tokenizer.encode(text).ids
    pieces = pieces_of(tokenizer, prompt + ids[:split], ids[split:])
    assert text.endswith("".join(pieces))
    if split == 0:
        assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)
    if text.isascii():
        assert len(pieces) == len(text)


def test_an_unfinished_character_is_shown_in_the_end(tokenizer_json: str) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids = tokenizer.encode("a🙂").ids[:-1]
    assert pieces_of(tokenizer, [], ids) == ["a", "\ufffd"]


class Words:
    """A tokenizer whose token i is the i-th of some strings."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[token] for token in ids)


def decoded(words: list[str], stop: tuple[str, ...]) -> list[str]:
    return pieces_of(Words(words), [], list(range(len(words))), stop)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "stop", "pieces"),
    [
        (["ab", "cd", "ef"], ("cd",), ["ab"]),
        (["ab", "cd", "ef"], ("bcde",), ["a"]),
        (["ab", "cd", "ef"], ("bcx",), ["a", "bcd", "ef"]),
        (["ab", "cd"], ("cdx",), ["ab", "cd"]),
        (["aab"], ("ab",), ["a"]),
        (["a", "a", "b", "c"], ("ab",), ["a"]),
        (["abc"], ("b", "abc"), ["a"]),
        (["abc"], ("c", "bc"), ["a"]),
        (["x"], ("x",), []),
    ],
)
def test_text_ends_before_a_stop_string_and_what_may_become_one_waits(words, stop, pieces) -> None:
    assert decoded(words, stop) == pieces


@given(st.lists(st.text("ab", max_size=4), max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_borders_of_tokens_do_not_matter(words: list[str], stop: list[str]) -> None:
    text = "".join(words)
    assert "".join(decoded(words, tuple(stop))) == text[: until_stop(text, stop)]


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_stop_string_that_is_complete_first_decides(text: str, stop: list[str]) -> None:
    complete = [end for end in range(len(text) + 1) if text[:end].endswith(tuple(stop))]
    length = until_stop(text, stop)
    if not complete:
        assert length is None
    else:
        assert length == complete[0] - max(len(each) for each in stop if text[: complete[0]].endswith(each))
