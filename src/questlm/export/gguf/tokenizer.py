"""A tokenizer.json as the keys of a GGUF file by which llama.cpp makes the same tokens."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

__all__ = ["Vocabulary", "gguf_vocabulary"]

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # types of tokens
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEXES = {_WORDS + "{1,3}" + _REST: "llama-bpe", _WORDS + _REST: "qwen2"}
"""How text is split before bytes are merged, and the name by which llama.cpp knows that."""


class Vocabulary(NamedTuple):
    """Tokens in the order of their ids.

    Attributes:
        pre: llama.cpp's name for how text is split.
        tokens: as a tokenizer.json spells them, one character for each byte; `[PAD7]` for an id 7 that is none.
        types: numbers of llama.cpp for kinds of tokens.
        merges: "left right", first come first.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]


def gguf_vocabulary(tokenizer_json: str, size: int) -> Vocabulary | str:
    """The keys for a tokenizer.json that has been checked, with `size` tokens; a reason where llama.cpp has none.

    It has byte-level BPE without a normaliser, with the splits of GPT-2, SmolLM, Llama 3 and Qwen 2.
    """
    content = json.loads(tokenizer_json)
    model = content["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return f"its model is {model.get('type')}, and only byte-level BPE can be carried over"
    if content.get("normalizer") is not None:
        return f"llama.cpp does not have its normaliser {content['normalizer'].get('type')}"
    changed = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    pre = _pre_tokenizer(content.get("pre_tokenizer") or {})
    if pre is None or changed or bool(model.get("ignore_merges")) is not (pre == "llama-bpe"):
        return "llama.cpp does not know how it splits text into words"
    merges = [each if isinstance(each, str) else " ".join(each) for each in model.get("merges") or ()]
    if not merges:  # an empty list cannot be written, and llama.cpp refuses a file without one
        return "it merges no characters"
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [_UNUSED] * size
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, _NORMAL
    for added in content.get("added_tokens") or ():
        index = added["id"]
        tokens[index], types[index] = added["content"], _CONTROL if added.get("special") else _USER_DEFINED
    return Vocabulary(pre, tokens, types, merges)


def _pre_tokenizer(settings: dict[str, Any]) -> str | None:
    steps = settings.get("pretokenizers") or [settings]
    if not _is_byte_level(steps[-1], use_regex=len(steps) == 1 or steps[0].get("type") == "Digits"):
        return None
    if len(steps) == 1:
        return "gpt-2"
    first = steps[0]
    if len(steps) != 2:
        return None
    if first.get("type") == "Digits":
        return "smollm" if first.get("individual_digits") else None
    if first.get("type") != "Split" or first.get("behavior") != "Isolated" or first.get("invert"):
        return None
    return _REGEXES.get((first.get("pattern") or {}).get("Regex", ""))


def _is_byte_level(step: dict[str, Any], use_regex: bool) -> bool:
    alike = step.get("type") == "ByteLevel" and not step.get("add_prefix_space")
    return alike and bool(step.get("use_regex", True)) is use_regex
