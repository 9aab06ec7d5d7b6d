"""The result of preparing any source: training and validation tokens, and what is known about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from questlm.data.stream import TokenStream
from questlm.data.tokenizer import tokenizer_size
from questlm.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PreparedData", "require_fit", "stream_hash"]


@dataclass(frozen=True)
class PreparedData:
    """Tokens to train on and tokens to validate on; no token is in both.

    `train_bytes` and `val_bytes` are the UTF-8 bytes of the two texts as they were read; end-of-text tokens have none.
    Token shards hold no text: their `val_bytes` are those of the decoded tokens, or None without a tokenizer, and
    `train_bytes` is None. `end_of_text` is the id of the token that ends a document, where one is known;
    `end_of_text_name` is its name, unless that is one of the usual names. `notes` are sentences for the user.
    `data_hash` identifies what was read and how it was tokenised; `val_hash` is the SHA-256 of the validation tokens as
    little-endian uint32, the same for the same tokens however they are stored. `chat_template` is that of the files
    beside the tokenizer.
    """

    train: TokenStream
    val: TokenStream
    train_bytes: int | None
    val_bytes: int | None
    tokenizer: Tokenizer | None = field(repr=False)
    vocab_size: int
    data_hash: str
    val_hash: str
    description: str
    end_of_text: int | None
    end_of_text_name: str | None
    notes: tuple[str, ...] = ()
    chat_template: str | None = field(default=None, repr=False)


def stream_hash(stream: TokenStream) -> str:
    """Return the hex SHA-256 of the tokens as little-endian uint32."""
    digest = hashlib.sha256()
    for chunk in stream.chunks():
        digest.update(chunk.astype("<u4").tobytes())
    return digest.hexdigest()


def require_fit(tokenizer: Tokenizer, vocab_size: int | None) -> None:
    """Raise DataError where the model's `vocab_size` is given and smaller than the tokenizer."""
    entries = tokenizer_size(tokenizer)
    if vocab_size is not None and vocab_size < entries:
        raise DataError(
            f"the tokenizer has {entries} entries but the model only {vocab_size}; "
            f"use --set model.vocab_size={entries} or leave it out"
        )
