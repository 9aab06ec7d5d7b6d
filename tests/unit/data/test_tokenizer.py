from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from questlm.data import end_of_text_id, load_tokenizer, tokenizer, tokenizer_hash, train_tokenizer
from questlm.data.tokenizer import sample, stated_chat_template, stated_end_of_text, tokenizer_size
from questlm.errors import DataError


@pytest.fixture(scope="module")
def small(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, 300)


def test_shape_of_a_trained_tokenizer(small: Tokenizer) -> None:
    assert tokenizer_size(small) == 300
    assert small.token_to_id("<|endoftext|>") == 0 == end_of_text_id(small)
    assert small.encode("fox", add_special_tokens=False).ids == small.encode("fox").ids


@given(text=st.text(max_size=50))
def test_lossless_on_any_text(small: Tokenizer, text: str) -> None:
    small.encode_special_tokens = True
    assert small.decode(small.encode(text).ids, skip_special_tokens=False) == text


def test_training_is_deterministic_in_another_process_too(small: Tokenizer, documents: list[str]) -> None:
    code = (
        "import json, sys; from questlm.data import train_tokenizer, tokenizer_hash; "
        "print(tokenizer_hash(train_tokenizer(json.load(sys.stdin), 300)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(documents), capture_output=True, text=True, check=True
    )
    assert tokenizer_hash(small) == other.stdout.strip() == tokenizer_hash(train_tokenizer(documents, 300))


def test_hash_tells_tokenizers_apart(small: Tokenizer, documents: list[str]) -> None:
    assert tokenizer_hash(small) != tokenizer_hash(train_tokenizer(documents, 301))


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(8, 200))
def test_sample_is_bounded_and_spread(lengths: list[int], limit: int) -> None:
    texts = [chr(256 + i) * length for i, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_SAMPLE_CHARACTERS", limit)
        patch.setattr(tokenizer, "_BLOCK_CHARACTERS", 8)
        kept = sample(texts)
    assert sum(map(len, kept)) <= limit
    whole = "".join(texts)
    if len(whole) <= limit:
        assert "".join(kept) == whole
    if set(lengths) == {8} and limit >= 16:
        positions = [ord(block[0]) for block in kept]
        assert len({b - a for a, b in pairwise(positions)}) <= 1


def test_sample_covers_the_end_as_well_as_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_SAMPLE_CHARACTERS", 10)
    kept = sample(chr(256 + i) for i in range(1000))
    positions = [ord(text) - 256 for text in kept]
    assert 5 <= len(positions) <= 10
    assert positions[0] == 0
    assert positions[-1] >= 800


def test_load_switches_truncation_and_padding_off(small: Tokenizer, tmp_path: Path) -> None:
    copy = Tokenizer.from_str(small.to_str())
    copy.enable_truncation(3)
    copy.enable_padding(length=50)
    copy.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(tmp_path / "t.json")
    assert tokenizer_hash(loaded) == tokenizer_hash(small)
    assert len(loaded.encode("abcdefgh ijkl").ids) == len(small.encode("abcdefgh ijkl").ids)


def test_bad_tokenizer_files(small: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json does not exist; data\.tokenizer must be 'train'"):
        load_tokenizer(tmp_path / "none.json")
    whole = small.to_str().encode()
    for bad in (b"", b"{}", b"[1]", b"\xff", whole[: len(whole) // 2]):
        (tmp_path / "bad.json").write_bytes(bad)
        with pytest.raises(DataError, match=r"bad\.json is not a tokenizer\.json"):
            load_tokenizer(tmp_path / "bad.json")


@pytest.mark.parametrize("name", ["</s>", "<eos>", "<|end_of_text|>"])
def test_other_names_for_the_end(name: str) -> None:
    other = Tokenizer(models.BPE())
    with pytest.raises(DataError, match="no token that ends a document"):
        end_of_text_id(other)
    other.add_special_tokens(["<pad>", AddedToken(name)])
    assert end_of_text_id(other) == 1


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"config.json": {"eos_token_id": 5}}, "%"),
        ({"config.json": {"eos_token_id": [5, 6]}}, "%"),
        ({"config.json": {"eos_token_id": None}, "generation_config.json": {"eos_token_id": 5}}, "%"),
        ({"config.json": {"eos_token_id": 10**9}, "tokenizer_config.json": {"eos_token": "%"}}, "%"),
        ({"tokenizer_config.json": {"eos_token": {"content": "%", "special": True}}}, "%"),
        ({"config.json": {"eos_token_id": True}, "tokenizer_config.json": {"eos_token": "absent"}}, None),
        ({"config.json": []}, None),
        ({}, None),
    ],
)
def test_the_end_that_files_beside_the_tokenizer_state(
    small: Tokenizer, tmp_path: Path, files: dict[str, object], name: str | None
) -> None:
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    nameless = Tokenizer.from_str(small.to_str().replace("<|endoftext|>", "<|stop|>"))
    assert nameless.id_to_token(5) == "%"
    assert stated_end_of_text(nameless, tmp_path) == name
    assert stated_end_of_text(small, tmp_path) is None  # it has one of a usual name
    if name is None:
        with pytest.raises(DataError, match=r"both kinds of quotes: --set 'data\.end_of_text=\"TOKEN\"'"):
            end_of_text_id(nameless, name)
    else:
        assert end_of_text_id(nameless, name) == 5
    with pytest.raises(DataError, match=r"data\.end_of_text is 'absent', but the tokenizer has no such token"):
        end_of_text_id(nameless, "absent")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"eos_token": "%"}}, None),
        ({"tokenizer_config.json": {"chat_template": "in json"}}, "in json"),
        ({"tokenizer_config.json": {"chat_template": "in json"}, "chat_template.jinja": "of a file"}, "of a file"),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default"}]}},
            None,
        ),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "y"}], "bos_token": "<s>"}},
            "y",
        ),
        (
            {"tokenizer_config.json": {"bos_token": {"content": '"'}}, "chat_template.jinja": "\n{{bos_token}} é"},
            '{% set bos_token = "\\"" %}\n\n{{bos_token}} é',
        ),
    ],
)
def test_the_chat_template_that_files_beside_the_tokenizer_state(
    files: dict[str, object], expected: str | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert stated_chat_template(tmp_path) == expected
