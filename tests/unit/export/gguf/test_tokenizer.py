"""Tokenizers that llama.cpp knows are carried over, and of others it is said why they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from questlm.export.gguf.tokenizer import Vocabulary, gguf_vocabulary

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def changed(tokenizer_json: str, change: Callable[[Any], Any]) -> str:
    content = json.loads(tokenizer_json)
    content["model"]["merges"] = ["a b"]
    change(content)
    return json.dumps(content)


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}


def split(regex: str) -> dict[str, Any]:
    return sequence(SPLIT | {"pattern": {"Regex": regex}}, BYTES | {"use_regex": False})


@pytest.mark.parametrize(
    ("settings", "pre"),
    [
        ({}, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True}), "smollm"),
        (split(LLAMA3.replace("{1,3}", "")), "qwen2"),
        (split(LLAMA3), None),  # needs ignore_merges
        (split(r"\s+"), None),
        (sequence({"type": "Digits", "individual_digits": False}, BYTES), None),
        (sequence({"type": "Digits", "individual_digits": True}, {"type": "Whitespace"}, BYTES), None),
        ({"pre_tokenizer": BYTES | {"add_prefix_space": True}}, None),
        ({"pre_tokenizer": None}, None),
        ({"normalizer": {"type": "NFC"}}, None),
    ],
)
def test_how_text_is_split(settings: dict[str, Any], pre: str | None, tokenizer_json: str) -> None:
    found = gguf_vocabulary(changed(tokenizer_json, lambda content: content.update(settings)), 257)
    assert (found.pre if isinstance(found, Vocabulary) else None) == pre


def test_tokens_have_their_ids_and_types(tokenizer_json: str) -> None:
    def add(content: Any) -> None:
        content["model"]["ignore_merges"] = True
        content["model"]["merges"] = [["a", "b"], ["c", "d"]]
        content["added_tokens"].append({"id": 258, "content": "<x>", "special": False})
        content.update(split(LLAMA3))

    found = gguf_vocabulary(changed(tokenizer_json, add), 260)
    assert isinstance(found, Vocabulary)
    assert found.pre == "llama-bpe"
    assert found.tokens[0] == "<|endoftext|>"
    assert found.tokens[257:] == ["[PAD257]", "<x>", "[PAD259]"]
    assert [found.types[index] for index in (0, 1, 257, 258, 259)] == [3, 1, 5, 4, 5]
    assert found.merges == ["a b", "c d"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"type": "Unigram", "vocab": []}, "its model is Unigram, and only byte-level BPE"),
        ({"type": "BPE", "byte_fallback": True}, "its model is BPE, and only byte-level BPE"),
        ({"merges": []}, "it merges no characters"),
    ],
)
def test_other_models_are_not_carried(model: dict[str, Any], reason: str, tokenizer_json: str) -> None:
    found = gguf_vocabulary(changed(tokenizer_json, lambda content: content["model"].update(model)), 257)
    assert isinstance(found, str)
    assert found.startswith(reason)
