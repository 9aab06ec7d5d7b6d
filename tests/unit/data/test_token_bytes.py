"""Bytes of tokens add up to those of the text, and follow the rules of the contest's own table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from questlm.data import train_tokenizer
from questlm.data.token_bytes import TokenBytes
from questlm.errors import DataError, MissingDependencyError

BYTE_LEVEL = train_tokenizer(["the quick brown fox, d\u00e9j\u00e0 vu"], 300)


def of_sentencepiece_kind() -> Tokenizer:
    """As SentencePiece makes them: pieces with a leading space, and bytes for what has no piece."""
    pieces = ["\u2581", "\u2581the", "the", "\u2581a", *"etaoinshrdlu", "\u00e9"]
    vocabulary = {"<unk>": 0, "</s>": 1, **{f"<0x{i:02X}>": 2 + i for i in range(256)}}
    vocabulary |= {piece: len(vocabulary) + i for i, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("\u2581", "a")]
    vocabulary["th"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def documents_as_tokens(tokenizer: Tokenizer, texts: list[str], end: int) -> np.ndarray:
    return np.array([token for text in texts for token in [end, *tokenizer.encode(text).ids]], np.int64)


TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), min_size=1), min_size=1, max_size=4)


@given(TEXTS)
def test_bytes_of_a_byte_level_tokenizer_are_those_of_the_text(texts: list[str]) -> None:
    tokens = documents_as_tokens(BYTE_LEVEL, texts, 0)
    table = TokenBytes.of_tokenizer(BYTE_LEVEL)
    assert table.total(tokens) == sum(len(text.encode()) for text in texts)
    assert int(table.counts(tokens).sum()) == table.total(tokens)  # the end of a text has none


@given(TEXTS)
def test_the_space_before_a_text_is_not_counted_and_bytes_are(texts: list[str]) -> None:
    texts = [text.lstrip(" ") or "a" for text in texts]
    tokenizer = of_sentencepiece_kind()
    tokens = documents_as_tokens(tokenizer, texts, 1)
    assert TokenBytes.of_tokenizer(tokenizer).total(tokens) == sum(len(text.encode()) for text in texts)


def test_the_table_is_that_of_the_contest() -> None:
    tokenizer = of_sentencepiece_kind()
    table = TokenBytes.of_tokenizer(tokenizer)
    for piece, own, spaced, silent in (
        ("</s>", 0, False, True),
        ("<0x41>", 1, False, False),
        ("\u2581the", 3, True, False),
        ("\u00e9", 2, False, False),
        ("\u2581", 0, True, False),
    ):
        index = tokenizer.token_to_id(piece)
        assert (table.own[index], table.spaced[index], table.silent[index]) == (own, spaced, silent), piece


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the token 9999"):
        TokenBytes.of_tokenizer(BYTE_LEVEL).counts(np.array([0, 9999]))
    with pytest.raises((MissingDependencyError, DataError)):
        TokenBytes.of_sentencepiece(tmp_path / "none.model")
