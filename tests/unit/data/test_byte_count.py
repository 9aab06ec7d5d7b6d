"""Bits per byte are over the bytes of the text as it was read, for every source, split and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from helpers.fallback_tokenizer import fallback_tokenizer
from questlm.config import DataConfig
from questlm.data import PreparedData, prepare, prepare_all, train_tokenizer
from questlm.data.tokenise import end_of_tokens

MakeConfig = Callable[..., DataConfig]


def lowercasing(documents: list[str]) -> Tokenizer:
    tokenizer = train_tokenizer([text.lower() for text in documents], 300)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def byte_fallback() -> Tokenizer:
    return fallback_tokenizer("etaoinshrdlu")


def words(documents: list[str]) -> Tokenizer:
    """Knows a few words, drops the spaces."""
    known = sorted(set(" ".join(documents).split()))[:9]
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1} | {w: 2 + i for i, w in enumerate(known)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.fixture(params=["byte level", "lower case", "byte fallback", "words"])
def tokenizer(request: pytest.FixtureRequest, documents: list[str]) -> Tokenizer:
    makers: dict[str, Callable[[], Tokenizer]] = {
        "byte level": lambda: train_tokenizer(documents, 320),
        "lower case": lambda: lowercasing(documents),
        "byte fallback": byte_fallback,
        "words": lambda: words(documents),
    }
    return makers[request.param]()


@pytest.fixture
def saved(tokenizer: Tokenizer, tmp_path: Path) -> str:
    tokenizer.save(str(tmp_path / "own.json"))
    return str(tmp_path / "own.json")


def size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def test_documents_held_out(make_config: MakeConfig, corpus_file: Path, documents: list[str], saved: str) -> None:
    config = make_config(corpus_file, tokenizer=saved)
    data = prepare(config)
    assert data.train_bytes is not None
    assert data.val_bytes is not None
    assert 0 < data.val_bytes < data.train_bytes
    assert data.train_bytes + data.val_bytes == size(documents)
    whole = prepare_all(config)
    assert (whole.val_bytes, len(whole.val), len(whole.train)) == (size(documents), len(data.train) + len(data.val), 0)


def test_a_source_of_its_own(make_config: MakeConfig, corpus_file: Path, tmp_path: Path, saved: str) -> None:
    (tmp_path / "val.txt").write_text("The Cat  ①\n<|endoftext|>\ntwo\n")
    validated = prepare(make_config(corpus_file, val=str(tmp_path / "val.txt"), tokenizer=saved))
    evaluated = prepare_all(make_config(tmp_path / "val.txt", tokenizer=saved))
    assert validated.val_bytes == evaluated.val_bytes == size(["The Cat  ①\n", "two\n"])


@pytest.mark.parametrize("limit", [None, 60])
def test_the_tail_of_one_document(
    make_config: MakeConfig, documents: list[str], tmp_path: Path, saved: str, limit: int | None
) -> None:
    text = "".join(documents)
    (tmp_path / "one.txt").write_text(text)
    data = prepare(make_config(tmp_path / "one.txt", tokenizer=saved, max_tokens=limit, val_fraction=0.3))
    assert data.train_bytes is not None
    assert data.val_bytes is not None
    assert data.val_bytes > 0
    if limit is None:
        assert data.train_bytes + data.val_bytes == size([text])
    # The bytes of each part are those of a beginning of the text, without half a character.
    for end in (data.train_bytes, data.train_bytes + data.val_bytes):
        text.encode()[:end].decode()
    tokens, total = len(data.train), len(data.train) + len(data.val)
    assert 0 <= tokens - round(0.7 * total) <= 4
    assert data.train_bytes / (data.train_bytes + data.val_bytes) == pytest.approx(tokens / total, abs=0.12)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aAé世 🦊\n", max_size=12), st.integers(0, 40))
def test_a_cut_gives_a_beginning_of_the_text(byte_level: Tokenizer, text: str, tokens: int) -> None:
    count = len(byte_level.encode(text, add_special_tokens=False).ids)
    tokens = min(tokens, count)
    kept, stop = end_of_tokens(byte_level, text, tokens, move=True)
    assert tokens <= kept <= min(count, tokens + 3)
    beginning = text.encode()[:stop].decode()
    assert byte_level.decode(byte_level.encode(text, add_special_tokens=False).ids[:kept]) == beginning


@pytest.fixture(scope="module")
def byte_level(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, 270)


# What a tokenizer loses


@pytest.mark.parametrize("make", [lowercasing, words, lambda documents: byte_fallback()])
def test_a_tokenizer_that_loses_text_is_named(
    make: Callable[[list[str]], Tokenizer], make_config: MakeConfig, documents: list[str], tmp_path: Path
) -> None:
    tokenizer = make(documents)
    tokenizer.save(str(tmp_path / "own.json"))
    (tmp_path / "loud.txt").write_text("The QUICK fox\n" * 100)
    config = make_config(tmp_path / "loud.txt", tokenizer=str(tmp_path / "own.json"))
    (note,) = prepare(config).notes
    lost = {lowercasing: "upper case", words: "words or characters that it does not know"}.get(make, "white space")
    assert note.startswith(f"the tokenizer loses text ({lost}")
    assert "come back changed, such as 'The QUICK fo" in note
    assert prepare(config).notes == (note,)  # also from the cache


def test_a_tokenizer_that_loses_nothing_is_not_named(make_config: MakeConfig, corpus_file: Path) -> None:
    assert prepare(make_config(corpus_file)).notes == ()


def test_a_space_put_before_a_text_is_no_loss(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([corpus_file.read_text()], 300)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(str(tmp_path / "own.json"))
    assert tokenizer.decode(tokenizer.encode("The").ids) == " The"
    assert prepare(make_config(corpus_file, tokenizer=str(tmp_path / "own.json"))).notes == ()


def test_shards_are_counted_by_decoding_and_say_so(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    text = prepare(make_config(corpus_file))
    shards = prepare(make_config(tmp_path / "cache" / text.data_hash))
    assert shards.val_bytes == text.val_bytes
    (note,) = shards.notes
    assert "token shards hold no text, so the bytes of bits per byte are those that the tokens decode to" in note


# Rows of null, and byte order marks


def test_null_rows_are_skipped_and_counted(make_config: MakeConfig, documents: list[str], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows: list[str | None] = [None, *documents, None]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "rows.parquet")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    expected = prepare(make_config(tmp_path / "rows.jsonl"))
    for source in (tmp_path / "rows.parquet", f"hf:{tmp_path / 'hub'}"):
        data = prepare(make_config(source))
        assert data.val_hash == expected.val_hash
        assert [note.partition(" rows of ")[0] for note in data.notes] == ["2"]
    assert expected.notes == (f"2 rows of '{tmp_path / 'rows.jsonl'}' hold null instead of text and are skipped",)
    assert expected.train_bytes is not None
    assert expected.val_bytes is not None
    assert expected.train_bytes + expected.val_bytes == size(documents)


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(make_config: MakeConfig, documents: list[str], tmp_path: Path, name: str) -> None:
    text = json.dumps({"text": "".join(documents)}) if name == "a.jsonl" else "".join(documents)
    results: list[PreparedData] = []
    for folder, mark in (("plain", b""), ("marked", b"\xef\xbb\xbf")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(mark + text.encode())
        results.append(prepare(make_config(tmp_path / folder / name)))
    plain, marked = results
    np.testing.assert_array_equal(plain.train.read(0, len(plain.train)), marked.train.read(0, len(marked.train)))
    assert (plain.val_hash, plain.val_bytes) == (marked.val_hash, marked.val_bytes)
