"""Read tokenizers of the `tokenizers` library from untrusted files, and find the token that ends a document.

Text and artifacts both come with a `tokenizer.json`, and maybe a chat template, so both read them here. No torch.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from questlm.errors import ConfigError, QuestError, quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "CHAT_TEMPLATE_NAME",
    "END_OF_TEXT",
    "END_OF_TEXT_NAMES",
    "LARGEST_VOCABULARY",
    "MAX_TOKENIZER_BYTES",
    "encode_text",
    "library_failures",
    "parse_tokenizer",
    "read_chat_template",
    "read_tokenizer_text",
    "self_contained_template",
    "usual_end_of_text",
]

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>")
"""Names that tokenizers give to the token that ends a document, likeliest first."""

LARGEST_VOCABULARY = 4_194_304
"""Entries that a model or a tokenizer may have: ten times those of any tokenizer in use."""

MAX_TOKENIZER_BYTES = 128 * 2**20

CHAT_TEMPLATE_NAME = "chat_template.jinja"
"""The file beside a tokenizer.json in which transformers keeps the template of a chat."""

_MAX_CHAT_TEMPLATE_BYTES = 2**20


def read_tokenizer_text(path: Path, error: type[QuestError]) -> str:
    """Return the content of a `tokenizer.json`; raise `error` unless it is plain UTF-8 of at most 128 MiB."""
    return _read_text(path, "tokenizer.json", MAX_TOKENIZER_BYTES, error)


def read_chat_template(path: Path, error: type[QuestError]) -> str:
    """Return the content of a `chat_template.jinja`; raise `error` unless it is plain UTF-8 of at most 1 MiB.

    It is a program of a stranger: render it in a sandbox of jinja2 only.
    """
    return _read_text(path, CHAT_TEMPLATE_NAME, _MAX_CHAT_TEMPLATE_BYTES, error)


def _read_text(path: Path, kind: str, limit: int, error: type[QuestError]) -> str:
    try:
        if not path.is_file():
            raise error(f"{path} is not a plain file, so no {kind} is read from it")
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path} is {size:,} bytes long, but a {kind} may have at most {limit:,}")
        return path.read_bytes().decode()
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not a {kind}: byte {problem.start} is not UTF-8") from None


def self_contained_template(template: str, tokens: Mapping[str, str | None]) -> str:
    """Return a chat template that sets the special tokens it names, so that it needs no other file.

    Args:
        template: of jinja2, in which `bos_token` and the like stand for tokens of the tokenizer.
        tokens: by that name; None: there is none.
    """
    known = {name: token for name, token in tokens.items() if token is not None}
    used = [name for name in sorted(known) if re.search(rf"\b{name}\b", template)]
    # transformers renders templates with trim_blocks, which takes away the line break behind a block.
    lines = (f"{{% set {name} = {json.dumps(known[name], ensure_ascii=False)} %}}\n" for name in used)
    return "".join(lines) + template


def parse_tokenizer(text: str, source: str, error: type[QuestError]) -> Tokenizer:
    """Parse a `tokenizer.json`, and switch off truncation and padding, which would change the documents.

    Ids are below `LARGEST_VOCABULARY`, and no two tokens share one, so that sizes computed from the largest id are
    bounded.

    Args:
        text: content of the file.
        source: where the text came from, for messages.
        error: the class of the error to raise.

    Raises:
        QuestError: `error`, if the text is no such tokenizer.
    """
    from tokenizers import Tokenizer

    def refuse(reason: str) -> QuestError:
        return error(f"{source} is not a tokenizer.json of the tokenizers library: {reason}")

    with library_failures(refuse), _silent_stderr():
        tokenizer: Tokenizer = Tokenizer.from_str(text)
        vocabulary = tokenizer.get_vocab()
        tokenizer.no_truncation()
        tokenizer.no_padding()
    largest = max(vocabulary.values(), default=-1)
    if largest >= LARGEST_VOCABULARY:
        token = next(token for token, index in vocabulary.items() if index == largest)
        raise error(
            f"{source} gives the token {quoted(token)} the id {largest}, but ids must be below {LARGEST_VOCABULARY:,}, "
            "because a model has a row of weights for each; number the tokens from 0 on"
        )
    (shared, count), *_ = Counter(vocabulary.values()).most_common(1) or [(0, 0)]
    if count > 1:
        tokens = sorted(token for token, index in vocabulary.items() if index == shared)
        raise error(
            f"{source} gives the tokens {quoted(tokens[0])} and {quoted(tokens[1])} the same id {shared}; "
            "each token needs an id of its own"
        )
    return tokenizer


def usual_end_of_text(tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that ends a document, or None where the tokenizer has none of a usual name."""
    return next((token for name in END_OF_TEXT_NAMES if (token := tokenizer.token_to_id(name)) is not None), None)


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of `text`, without special tokens that the tokenizer would add.

    Raises:
        ConfigError: `text` is not valid Unicode, or the tokenizer fails.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the text {quoted(text)} is not valid Unicode, so it cannot be encoded") from None
    with library_failures(lambda reason: ConfigError(f"the tokenizer cannot encode {quoted(text)}: {reason}")):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@contextmanager
def library_failures(refuse: Callable[[str], QuestError]) -> Iterator[None]:
    """Raise `refuse(reason)` for any exception of the tokenizers library inside the block.

    This includes panics of its Rust code: they are BaseExceptions, which no `except Exception` catches.
    """
    try:
        yield
    except BaseException as problem:
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        raise refuse(quoted(" ".join(str(problem).split()), 200)) from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2 inside the block: Rust prints a page about each panic."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (os.devnull is no path of a file)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
