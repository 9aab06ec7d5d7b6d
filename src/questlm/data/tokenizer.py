"""Train, load and identify tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from questlm.errors import DataError, quoted
from questlm.json_files import read_json
from questlm.tokenizer_files import (
    CHAT_TEMPLATE_NAME,
    END_OF_TEXT,
    END_OF_TEXT_NAMES,
    LARGEST_VOCABULARY,
    parse_tokenizer,
    read_chat_template,
    read_tokenizer_text,
    self_contained_template,
    usual_end_of_text,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "end_of_text_id",
    "load_tokenizer",
    "sample",
    "stated_chat_template",
    "stated_end_of_text",
    "tokenizer_hash",
    "tokenizer_size",
    "train_tokenizer",
]

_SAMPLE_CHARACTERS = 16 * 2**20
_BLOCK_CHARACTERS = 8192


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` entries (fewer on a tiny corpus); `<|endoftext|>` is 0. Deterministic.

    It is lossless, because its alphabet has all 256 bytes, and learns from a `sample` of `texts` of at most 16 Mi
    characters: more text hardly changes a vocabulary of ordinary size, and training takes seconds.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(texts), trainer)
    return tokenizer


def sample(texts: Iterable[str]) -> list[str]:
    """Return at most 16 Mi characters of `texts`, taken evenly over their length in one pass.

    Texts are divided into blocks of 8,192 characters. Every block is kept until there are too many; then every other
    one is dropped, and of the following blocks only every second is kept, then every fourth, and so on.
    """
    kept: list[str] = []
    size = number = 0
    stride = 1
    for text in texts:
        for start in range(0, len(text), _BLOCK_CHARACTERS):
            if number % stride == 0:
                kept.append(text[start : start + _BLOCK_CHARACTERS])
                size += len(kept[-1])
            number += 1
            while size > _SAMPLE_CHARACTERS:
                kept, stride = kept[::2], 2 * stride
                size = sum(map(len, kept))
    return kept


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`, with truncation and padding off. Errors as `questlm.tokenizer_files.parse_tokenizer`."""
    if not path.exists():
        raise DataError(f"{path} does not exist; data.tokenizer must be 'train' or the path of a tokenizer.json")
    return parse_tokenizer(read_tokenizer_text(path, DataError), str(path), DataError)


def end_of_text_id(tokenizer: Tokenizer, name: str | None = None) -> int:
    """Return the id of the token that ends a document: the one called `name`, else one of a usual name.

    Raises:
        DataError: the tokenizer has no such token.
    """
    token = usual_end_of_text(tokenizer) if name is None else tokenizer.token_to_id(name)
    if token is not None:
        return token
    if name is not None:
        raise DataError(f"data.end_of_text is {quoted(name)}, but the tokenizer has no such token")
    raise DataError(
        f"the tokenizer has no token that ends a document under a usual name ({', '.join(END_OF_TEXT_NAMES)}); name "
        "one of its tokens, in both kinds of quotes: --set 'data.end_of_text=\"TOKEN\"'"
    )


def stated_end_of_text(tokenizer: Tokenizer, folder: Path) -> str | None:
    """Return the token that ends a document by the files of the Hugging Face model in `folder`, or None.

    None also where the tokenizer has a token of a usual name: the files of a chat model name the end of a turn.
    """
    if usual_end_of_text(tokenizer) is not None:
        return None
    for file, key in _STATEMENTS:
        if not (folder / file).is_file():
            continue
        content = read_json(folder / file, DataError)
        stated = content.get(key) if isinstance(content, dict) else None
        stated = stated[0] if isinstance(stated, list) and stated else stated
        name = _token_name(tokenizer, _content(stated))
        if name is not None:
            return name
    return None


_SETTINGS = "tokenizer_config.json"
_STATEMENTS = (
    ("config.json", "eos_token_id"),
    ("generation_config.json", "eos_token_id"),
    (_SETTINGS, "eos_token"),
)
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def stated_chat_template(folder: Path) -> str | None:
    """Return the chat template of the Hugging Face model in `folder`, with its special tokens set, or None.

    Of several templates it is the one named "default".

    Raises:
        DataError: a file that holds it cannot be read.
    """
    settings: object = None
    if (folder / _SETTINGS).is_file():
        settings = read_json(folder / _SETTINGS, DataError)
    known = settings if isinstance(settings, dict) else {}
    template = known.get("chat_template")
    if isinstance(template, list):
        named = (each for each in template if isinstance(each, dict) and each.get("name") == "default")
        template = next(named, {}).get("template")
    if (folder / CHAT_TEMPLATE_NAME).is_file():
        template = read_chat_template(folder / CHAT_TEMPLATE_NAME, DataError)
    if not isinstance(template, str):
        return None
    tokens = {name: _content(known.get(name)) for name in _SPECIAL}
    return self_contained_template(
        template, {name: token if isinstance(token, str) else None for name, token in tokens.items()}
    )


def _content(stated: object) -> object:
    """A token as Hugging Face's files write it: a string, or an object with it."""
    return stated.get("content") if isinstance(stated, dict) else stated


def _token_name(tokenizer: Tokenizer, stated: object) -> str | None:
    if isinstance(stated, str):
        return stated if tokenizer.token_to_id(stated) is not None else None
    if isinstance(stated, int) and not isinstance(stated, bool) and 0 <= stated < LARGEST_VOCABULARY:
        return tokenizer.id_to_token(stated)
    return None


def tokenizer_size(tokenizer: Tokenizer) -> int:
    """Return the largest id plus one, which a model's vocabulary must have. Gaps make it more than the entries."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the hex SHA-256 of the tokenizer's JSON."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
