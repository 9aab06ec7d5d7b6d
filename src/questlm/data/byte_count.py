"""Count the UTF-8 bytes of the text that tokens stand for, where only the tokens are available.

For text that is tokenised here, `questlm.data.tokenise` counts the bytes, because decoding tokens need not return the
text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from questlm.data.stream import TokenStream
from questlm.data.tokenizer import tokenizer_size
from questlm.errors import DataError
from questlm.tokenizer_files import library_failures

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["count_bytes", "document_bytes", "token_lengths"]

_LONGEST_DOCUMENT = 2**20


def count_bytes(tokenizer: Tokenizer, stream: TokenStream, end: int | None) -> int:
    """Return the number of UTF-8 bytes of the text in `stream`; special tokens count none.

    All ids must be the tokenizer's; `end` is the id that ends a document, or None. The count is exact for byte-level
    tokenizers, wherever the stream begins and ends. Other tokenizers decode document by document; a document of more
    than 1 Mi tokens is decoded in parts, and where a part begins inside a word a few bytes in a million are miscounted.
    """
    lengths = token_lengths(tokenizer)
    if lengths is not None:
        return sum(int(lengths[chunk].sum()) for chunk in stream.chunks())
    return sum(_decoded_length(tokenizer, document) for document in _documents(stream, end))


def document_bytes(tokenizer: Tokenizer, stream: TokenStream, end: int) -> list[int]:
    """Return the UTF-8 bytes of each document of `stream`, which the token `end` ends; the last may have no end.

    As `count_bytes`, these are bytes of what the tokens decode to.
    """
    lengths = token_lengths(tokenizer)
    tokens = stream.read(0, len(stream))
    documents = np.split(tokens, np.flatnonzero(tokens == end) + 1)
    documents = documents if len(documents[-1]) else documents[:-1]
    if lengths is not None:
        return [int(lengths[document].sum()) for document in documents]
    return [_decoded_length(tokenizer, document) for document in documents]


def _decoded_length(tokenizer: Tokenizer, document: NDArray[np.int64]) -> int:
    with library_failures(lambda reason: DataError(f"the tokenizer cannot decode the tokens: {reason}")):
        return len(tokenizer.decode(document.tolist()).encode())


def token_lengths(tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """Return the bytes of each id, None of tokens that have none: a byte-level one has a character for each byte."""
    from tokenizers.decoders import ByteLevel

    if not isinstance(tokenizer.decoder, ByteLevel):
        return None
    lengths = np.zeros(tokenizer_size(tokenizer), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = len(token)
    for index, added in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    return lengths


def _documents(stream: TokenStream, end: int | None) -> Iterator[NDArray[np.int64]]:
    rest = np.empty(0, dtype=np.int64)
    for chunk in stream.chunks(_LONGEST_DOCUMENT):
        rest = np.concatenate([rest, chunk])
        *documents, rest = np.split(rest, np.flatnonzero(rest == (-1 if end is None else end)) + 1)
        yield from documents
        if len(rest) >= _LONGEST_DOCUMENT:
            yield rest
            rest = rest[:0]
    yield rest
