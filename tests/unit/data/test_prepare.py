from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from questlm.config import DataConfig
from questlm.data import PreparedData, TokenStream, corpus, load_tokenizer, prepare, readers, tokenise
from questlm.data.byte_count import count_bytes
from questlm.data.shards import write_shards
from questlm.errors import ConfigError, DataError
from questlm.json_files import canonical_json
from questlm.manifest import write_manifest

MakeConfig = Callable[..., DataConfig]


def texts_of(tokenizer: Tokenizer, stream: TokenStream) -> list[str]:
    """Decoded documents of a stream that ends with an end-of-text token."""
    tokens = stream.read(0, len(stream))
    *documents, rest = np.split(tokens, np.flatnonzero(tokens == 0) + 1)
    assert len(rest) == 0
    return [tokenizer.decode(document[:-1].tolist(), skip_special_tokens=False) for document in documents]


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name != "facts"]


def test_train_and_val_partition_the_documents(
    make_config: MakeConfig, corpus_file: Path, documents: list[str]
) -> None:
    data = prepare(make_config(corpus_file))
    assert data.tokenizer is not None
    train, val = (texts_of(data.tokenizer, stream) for stream in (data.train, data.val))
    assert sorted(train + val) == sorted(documents)
    assert train == [text for text in documents if text in train]
    share = len(data.val) / (len(data.train) + len(data.val))
    assert 0.1 <= share <= 0.2
    assert data.val_bytes == sum(len(text.encode()) for text in val)
    assert data.vocab_size == 350
    assert data.description == (
        f"{corpus_file}: {len(data.train):,} training and {len(data.val):,} validation tokens "
        f"({len(val)} of {len(documents)} documents)"
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(alphabet="aé世\n<|endoftext|>", min_size=1, max_size=40), min_size=1, max_size=12), st.data())
def test_tokens_decode_to_the_documents(tokenizer_path: Path, documents: list[str], data: st.DataObject) -> None:
    documents = [document + "." for document in documents]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_PIECE_CHARACTERS", data.draw(st.integers(1, 30)))
        patch.setattr(tokenise, "_BATCH_CHARACTERS", data.draw(st.integers(1, 60)))
        folder = Path(name)
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        (folder / "val.txt").write_text("other")
        config = DataConfig(
            source=str(folder / "a.jsonl"), val=str(folder / "val.txt"), tokenizer=str(tokenizer_path), cache_dir=name
        )
        prepared = prepare(config)
        assert prepared.tokenizer is not None
        assert texts_of(prepared.tokenizer, prepared.train) == documents
        assert prepared.val_bytes == 5


def test_a_second_call_only_opens(make_config: MakeConfig, corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(make_config(corpus_file, tokenizer="train", vocab_size=300))
    monkeypatch.setattr(corpus, "_build", None)
    again = prepare(make_config(corpus_file, tokenizer="train", vocab_size=300))
    assert_same(first, again)


def assert_same(first: PreparedData, again: PreparedData) -> None:
    for name in ("val_bytes", "vocab_size", "data_hash", "val_hash", "description"):
        assert getattr(first, name) == getattr(again, name)
    for ours, theirs in ((first.train, again.train), (first.val, again.val)):
        np.testing.assert_array_equal(ours.read(0, len(ours)), theirs.read(0, len(theirs)))


@pytest.mark.parametrize(
    "change", [{"val_fraction": 0.2}, {"max_tokens": 500}, {"tokenizer": "train", "vocab_size": 300}]
)
def test_each_setting_has_an_entry_of_its_own(make_config: MakeConfig, corpus_file: Path, change: Any) -> None:
    assert prepare(make_config(corpus_file)).data_hash != prepare(make_config(corpus_file, **change)).data_hash


def test_changed_text_has_an_entry_of_its_own(make_config: MakeConfig, corpus_file: Path) -> None:
    first = prepare(make_config(corpus_file))
    with corpus_file.open("a") as file:
        file.write("one more document\n")
    second = prepare(make_config(corpus_file))
    assert len(second.train) + len(second.val) > len(first.train) + len(first.val)


def test_a_validation_source_of_its_own(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("ünseen\n<|endoftext|>\ntwo\n")
    data = prepare(make_config(corpus_file, val=str(tmp_path / "val.txt")))
    assert data.tokenizer is not None
    assert texts_of(data.tokenizer, data.val) == ["ünseen\n", "two\n"]
    assert len(texts_of(data.tokenizer, data.train)) == 40
    assert data.val_bytes == len("ünseen\ntwo\n".encode())


def test_a_hub_validation_split_is_bounded(
    make_config: MakeConfig, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    rows = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    for split in ("train", "validation"):
        (root / f"{split}.jsonl").write_text(rows)
    monkeypatch.setattr(corpus, "_HUB_VALIDATION_TOKENS", 100)
    data = prepare(make_config(f"hf:{root}", max_tokens=70))
    assert (len(data.train), len(data.val)) == (70, 100)
    assert data.tokenizer is not None
    assert "".join(documents).encode().startswith(decoded_bytes(data))


def decoded_bytes(data: PreparedData) -> bytes:
    """Bytes of the validation text, less a character that the cut may have broken."""
    assert data.tokenizer is not None
    text = data.tokenizer.decode(data.val.read(0, len(data.val)).tolist())
    assert data.val_bytes is not None
    assert 0 <= data.val_bytes - len(text.rstrip("\ufffd").encode()) <= 3
    return text.rstrip("\ufffd").encode()


def test_the_tail_is_held_out_of_a_single_document(
    make_config: MakeConfig, documents: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "one.txt"
    path.write_text("".join(documents))
    data = prepare(make_config(path))
    assert data.tokenizer is not None
    parts = [stream.read(0, len(stream)) for stream in (data.train, data.val)]
    assert data.tokenizer.decode(np.concatenate(parts).tolist()) == "".join(documents)
    # The border is moved behind the character that it would divide.
    assert 0 <= round(0.1 * (len(data.train) + len(data.val))) - len(data.val) <= 3
    assert data.train_bytes == count_bytes(data.tokenizer, data.train, 0)
    assert data.val_bytes == count_bytes(data.tokenizer, data.val, 0)


@pytest.mark.parametrize("limit", [1, 17, 100, 10**9])
def test_max_tokens(make_config: MakeConfig, corpus_file: Path, tmp_path: Path, limit: int) -> None:
    (tmp_path / "val.txt").write_text("x")
    everything = prepare(make_config(corpus_file, val=str(tmp_path / "val.txt"))).train
    expected = everything.read(0, min(limit, len(everything)))
    for data in (
        prepare(make_config(corpus_file, val=str(tmp_path / "val.txt"), max_tokens=limit)),
        prepare(make_config(corpus_file, val=str(tmp_path / "val.txt"), max_tokens=limit + 1), max_tokens=limit),
    ):
        np.testing.assert_array_equal(data.train.read(0, len(data.train)), expected)


def test_a_document_cut_by_max_tokens_trains(make_config: MakeConfig, corpus_file: Path, documents: list[str]) -> None:
    data = prepare(make_config(corpus_file, max_tokens=700))
    assert data.tokenizer is not None
    assert len(data.train) + len(data.val) == 700
    val = texts_of(data.tokenizer, data.val)
    assert set(val) < set(documents)
    assert data.val_bytes == sum(len(text.encode()) for text in val)


def test_vocabulary_of_the_model(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    assert prepare(make_config(corpus_file), vocab_size=512).vocab_size == 512
    with pytest.raises(DataError, match="the tokenizer has 350 entries but the model only 349"):
        prepare(make_config(corpus_file), vocab_size=349)
    with pytest.raises(DataError, match="the tokenizer has 300 entries but the model only 299"):
        prepare(make_config(corpus_file, tokenizer="train", vocab_size=300), vocab_size=299)
    assert len(entries(tmp_path / "cache")) == 1


def test_an_empty_corpus(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n<|endoftext|>\n  \n")
    for config in (
        make_config(tmp_path / "blank.txt"),
        make_config(tmp_path / "blank.txt", tokenizer="train"),
        make_config(corpus_file, val=str(tmp_path / "blank.txt")),
    ):
        with pytest.raises(DataError, match=r"blank\.txt' holds no text: every document in it is empty"):
            prepare(config)
    assert entries(tmp_path / "cache") == []


@pytest.mark.parametrize("problem", [KeyboardInterrupt, DataError, MemoryError])
def test_a_killed_preparation_leaves_nothing(
    make_config: MakeConfig,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: type[BaseException],
) -> None:
    def killed(*values: object) -> None:
        raise problem

    with monkeypatch.context() as patch, pytest.raises(problem):
        patch.setattr(corpus, "write_manifest", killed)
        prepare(make_config(corpus_file))
    assert entries(tmp_path / "cache") == []
    assert len(prepare(make_config(corpus_file)).train)


def test_a_damaged_text_leaves_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good\n<|endoftext|>\n" * 100 + b"\xff")
    with pytest.raises(DataError, match="byte 1900 "):
        prepare(make_config(tmp_path / "bad.txt"))
    assert entries(tmp_path / "cache") == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip])
@pytest.mark.parametrize(
    "name", ["MANIFEST.json", "tokenizer.json", "tokens_train_000000.bin", "tokens_val_000000.bin"]
)
def test_a_damaged_entry_is_made_again(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    first = prepare(make_config(corpus_file))
    damage(tmp_path / "cache" / first.data_hash / name)
    again = prepare(make_config(corpus_file))
    assert texts_of(load_tokenizer(tmp_path / "cache" / first.data_hash / "tokenizer.json"), again.val)
    assert (again.val_hash, again.val_bytes, again.description) == (first.val_hash, first.val_bytes, first.description)


@pytest.mark.parametrize("name", ["tokens_train_000001.bin", "tokens_val_000001.bin", "tokens_train_000000 (copy).bin"])
def test_only_what_the_manifest_lists_is_read(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path, name: str
) -> None:
    first = prepare(make_config(corpus_file))
    entry = tmp_path / "cache" / first.data_hash
    shutil.copy(entry / "tokens_train_000000.bin", entry / name)
    assert_same(first, prepare(make_config(corpus_file)))
    # Also where the entry itself is the source.
    shards = prepare(make_config(entry))
    assert (len(shards.train), len(shards.val)) == (len(first.train), len(first.val))


def test_an_entry_of_an_older_version_is_a_source(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    first = prepare(make_config(corpus_file))
    older = tmp_path / "older"
    shutil.copytree(tmp_path / "cache" / first.data_hash, older)
    (older / "MANIFEST.json").unlink()
    write_manifest(
        older, "questlm tokens", 1, {"val_bytes": first.val_bytes, "val_hash": first.val_hash, "held_out": "9 of 60"}
    )
    shards = prepare(make_config(older))
    assert (len(shards.train), shards.val_hash) == (len(first.train), first.val_hash)


def test_a_manifest_with_other_details_is_made_again(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path
) -> None:
    first = prepare(make_config(corpus_file))
    entry = tmp_path / "cache" / first.data_hash
    sealed = json.loads((entry / "MANIFEST.json").read_text())["details"]
    for details in ({}, {"val_bytes": -1}, {"val_bytes": "many"}, sealed | {"val_hash": "other"}):
        (entry / "MANIFEST.json").unlink()
        write_manifest(entry, "questlm tokens", 2, details)
        assert_same(first, prepare(make_config(corpus_file)))


@pytest.mark.parametrize("name", ["x" * 300, "../text.txt", "a\0b"])
def test_an_entry_that_lists_an_impossible_file_is_made_again(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path, name: str
) -> None:
    first = prepare(make_config(corpus_file))
    path = tmp_path / "cache" / first.data_hash / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    digest = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    path.write_text(canonical_json(manifest | {"digest": digest}))
    assert_same(first, prepare(make_config(corpus_file)))


def test_an_entry_with_ids_that_its_tokenizer_lacks_is_made_again(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path
) -> None:
    first = prepare(make_config(corpus_file))
    entry = tmp_path / "cache" / first.data_hash
    details = json.loads((entry / "MANIFEST.json").read_text())["details"]
    write_shards(entry, "tokens_train", [np.full(100, first.vocab_size)], first.vocab_size + 1)
    (entry / "MANIFEST.json").unlink()
    write_manifest(entry, "questlm tokens", 2, details)
    assert_same(first, prepare(make_config(corpus_file)))


def test_an_entry_holds_public_shards(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    text = prepare(make_config(corpus_file))
    folder = tmp_path / "cache" / text.data_hash
    assert sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json",
        "tokenizer.json",
        "tokens_train_000000.bin",
        "tokens_val_000000.bin",
    ]
    shards = prepare(make_config(folder / "*.bin"))
    assert (shards.val_hash, shards.val_bytes) == (text.val_hash, text.val_bytes)


def test_two_preparations_at_once(make_config: MakeConfig, corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_are_done = threading.Barrier(2)
    write = corpus.write_manifest

    def write_together(*values: Any) -> None:
        write(*values)
        both_are_done.wait(timeout=20)

    monkeypatch.setattr(corpus, "write_manifest", write_together)
    results: list[PreparedData] = []
    threads = [threading.Thread(target=lambda: results.append(prepare(make_config(corpus_file)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(*results)


def test_a_cache_that_cannot_be_written(make_config: MakeConfig, corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*; set data\.cache_dir"):
        prepare(make_config(corpus_file, cache_dir=str(tmp_path / "file" / "cache")))


def test_where_the_cache_lies(make_config: MakeConfig, corpus_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for variable, value, place in (
        ("HOME", "home", "home/.cache/questlm"),
        ("XDG_CACHE_HOME", "xdg", "xdg/questlm"),
        ("QUESTLM_CACHE", "own", "own"),
    ):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False) if variable == "HOME" else None
        monkeypatch.setenv(variable, str(tmp_path / value))
        monkeypatch.delenv("QUESTLM_CACHE", raising=False) if variable != "QUESTLM_CACHE" else None
        prepare(make_config(corpus_file, cache_dir=None))
        assert len(entries(tmp_path / place)) == 1


# Token shards


@pytest.fixture
def shards(tmp_path: Path, make_config: MakeConfig, corpus_file: Path) -> Path:
    """The corpus as fineweb_train_*.bin and fineweb_val_*.bin."""
    data = prepare(make_config(corpus_file))
    folder = tmp_path / "shards"
    folder.mkdir()
    for split, stream in (("train", data.train), ("val", data.val)):
        write_shards(folder, f"fineweb_{split}", stream.chunks(500), 350)
    shutil.rmtree(tmp_path / "cache")
    return folder


def test_shards_without_a_tokenizer(make_config: MakeConfig, shards: Path, tmp_path: Path) -> None:
    data = prepare(make_config(shards, tokenizer="train"), vocab_size=350)
    assert (data.tokenizer, data.val_bytes, data.vocab_size) == (None, None, 350)
    assert data.description.endswith("(shards of their own)")
    assert not (tmp_path / "cache").exists() or not entries(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"--set model\.vocab_size=N"):
        prepare(make_config(shards, tokenizer="train"))


def test_shards_with_a_tokenizer(make_config: MakeConfig, shards: Path) -> None:
    data = prepare(make_config(shards))
    assert data.tokenizer is not None
    assert data.vocab_size == 350
    assert data.val_bytes == sum(len(text.encode()) for text in texts_of(data.tokenizer, data.val))
    assert_same(data, prepare(make_config(shards)))
    assert prepare(make_config(shards), vocab_size=512).vocab_size == 512
    with pytest.raises(DataError, match="the model only 300"):
        prepare(make_config(shards), vocab_size=300)


def test_shards_with_ids_beyond_the_vocabulary(make_config: MakeConfig, shards: Path) -> None:
    with pytest.raises(DataError, match=r"fineweb_train_000000\.bin holds the token id 34\d at position"):
        prepare(make_config(shards / "fineweb_train*", tokenizer="train"), vocab_size=300)
    with pytest.raises(DataError, match=r"fineweb_val_000000\.bin holds the token id"):
        prepare(make_config(tail_free(shards), val=str(shards), tokenizer="train"), vocab_size=300)


def tail_free(shards: Path) -> Path:
    write_shards(shards, "zeros", [np.zeros(10, dtype=np.int64)], 350)
    return shards / "zeros_000000.bin"


def test_the_tail_of_shards_is_held_out(make_config: MakeConfig, shards: Path) -> None:
    whole = prepare(make_config(shards, tokenizer="train"), vocab_size=350).train
    data = prepare(make_config(shards / "fineweb_train*"))
    assert data.tokenizer is not None
    parts = [stream.read(0, len(stream)) for stream in (data.train, data.val)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.read(0, len(whole)))
    assert data.val_bytes == count_bytes(data.tokenizer, whole, 0) - count_bytes(data.tokenizer, data.train, 0)
    few = prepare(make_config(shards / "fineweb_train*", max_tokens=50))
    assert (len(few.train), len(few.val)) == (45, 5)
    assert few.data_hash != data.data_hash


def test_bytes_of_a_tokenizer_that_is_not_byte_level() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "fünf": 1, "cats": 2}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["</s>"])
    stream = TokenStream([np.array([1, 2, 3, 3, 2, 3, 2])])
    assert count_bytes(tokenizer, stream, tokenizer.token_to_id("</s>")) == len("fünfcats".encode()) + 4 + 4


def test_added_tokens_count_unless_they_are_special(documents: list[str], tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    tokenizer.add_tokens(["wörd"])
    tokenizer.add_special_tokens(["<|user|>"])
    ids = tokenizer.encode("a wörd<|user|>b<|endoftext|>").ids
    assert count_bytes(tokenizer, TokenStream([np.array(ids)]), 0) == len("a wördb".encode())
