"""From pieces of text to tokens, with every core and a bounded amount of memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from questlm.data.readers import Piece
from questlm.data.tokenizer import end_of_text_id
from questlm.errors import DataError
from questlm.vocabulary import library_failures

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Documents", "tokenise"]

_BATCH_CHARACTERS = 4 * 2**20
_BATCH_PIECES = 16_384

Item = TypeVar("Item")


@dataclass
class Documents:
    """Tokens (end-of-text included) and UTF-8 bytes (excluded) of each whole document, in order: 16 bytes a document.

    `cut_tokens` counts the tokens behind them, of a last document that was not taken to its end.
    """

    tokens: array[int] = field(default_factory=lambda: array("q"))
    text_bytes: array[int] = field(default_factory=lambda: array("q"))
    cut_tokens: int = 0
    _cut_bytes: int = 0

    def add(self, tokens: int, text_bytes: int, ends_document: bool) -> None:
        """Count one piece."""
        self.cut_tokens += tokens
        self._cut_bytes += text_bytes
        if ends_document:
            self.tokens.append(self.cut_tokens)
            self.text_bytes.append(self._cut_bytes)
            self.cut_tokens = self._cut_bytes = 0


def tokenise(
    pieces: Iterator[Piece], tokenizer: Tokenizer, limit: int | None, documents: Documents
) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of `pieces` in arrays, an end-of-text token behind each document; stop after `limit` tokens.

    `documents` is filled along the way. A text that spells a special token, such as '<|endoftext|>', is text: only a
    document's real end gives that token.
    """
    coder = type(tokenizer).from_str(tokenizer.to_str())  # a copy, because the next line changes it
    coder.encode_special_tokens = True
    end = end_of_text_id(tokenizer)
    left = limit
    for batch in _ahead(_batches(pieces)):
        with library_failures(_cannot_encode):
            encodings = coder.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        arrays = []
        for piece, encoding in zip(batch, encodings, strict=True):
            ids = np.array([*encoding.ids, end] if piece.ends_document else encoding.ids, dtype=np.int64)
            whole = left is None or len(ids) <= left
            ids = ids[:left]
            documents.add(len(ids), len(piece.text.encode()), piece.ends_document and whole)
            arrays.append(ids)
            if left is not None:
                left -= len(ids)
                if left == 0:
                    break
        yield np.concatenate(arrays)
        if left == 0:
            return


def _cannot_encode(reason: str) -> DataError:
    return DataError(f"the tokenizer cannot encode this text: {reason}; use a tokenizer that knows every character")


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next always being fetched in a thread: reading and unpacking go on while we tokenise."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item
