"""Tokenise pieces of text on all cores, in bounded memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from questlm.data.readers import Piece
from questlm.errors import DataError
from questlm.tokenizer_files import library_failures

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Documents", "end_of_tokens", "literal_coder", "tokenise"]

_BATCH_CHARACTERS = 4 * 2**20
_BATCH_PIECES = 16_384
_SAMPLES, _SAMPLES_PER_BATCH, _SAMPLE_CHARACTERS = 256, 64, 1024

Item = TypeVar("Item")


@dataclass
class Documents:
    """Sizes of the documents that were tokenised: tokens (end-of-text included) and UTF-8 bytes (excluded), in order.

    The bytes are those of the text as it was read, whatever the tokenizer makes of it. They are counted nowhere else.

    Attributes:
        tokens, text_bytes: of each complete document.
        partial_tokens, partial_bytes: of the last document, where the limit of tokens ended it early.
        pieces: tokens of each piece.
        null_rows: rows that held null instead of text.
        samples: beginnings of pieces from all over the text, at most 256 KiB together.
    """

    tokens: array[int] = field(default_factory=lambda: array("q"))
    text_bytes: array[int] = field(default_factory=lambda: array("q"))
    partial_tokens: int = 0
    partial_bytes: int = 0
    pieces: array[int] = field(default_factory=lambda: array("q"))
    null_rows: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def all_bytes(self) -> int:
        """UTF-8 bytes of all text."""
        return sum(self.text_bytes) + self.partial_bytes

    def add(self, tokens: int, text_bytes: int, ends_document: bool) -> None:
        """Count a piece of `tokens` tokens and `text_bytes` UTF-8 bytes, which may end its document."""
        self.pieces.append(tokens)
        self.partial_tokens += tokens
        self.partial_bytes += text_bytes
        if ends_document:
            self.tokens.append(self.partial_tokens)
            self.text_bytes.append(self.partial_bytes)
            self.partial_tokens = self.partial_bytes = 0


def tokenise(
    pieces: Iterator[Piece], tokenizer: Tokenizer, end: int, limit: int | None, documents: Documents
) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of `pieces` in arrays, with the token `end` after each document; stop after `limit` tokens.

    `documents` is filled along the way. A text that spells a special token, such as '<|endoftext|>', is text: only the
    end of a document gives that token.
    """
    coder = literal_coder(tokenizer)
    left = limit
    for batch in _ahead(_batches(pieces)):
        documents.null_rows += sum(piece.is_null for piece in batch)
        texts = [piece for piece in batch if not piece.is_null]
        _sample(texts, documents.samples)
        with library_failures(_cannot_encode):
            encodings = coder.encode_batch_fast([piece.text for piece in texts], add_special_tokens=False)
        arrays = [np.empty(0, dtype=np.int64)]
        for piece, encoding in zip(texts, encodings, strict=True):
            ids = np.array([*encoding.ids, end] if piece.ends_document else encoding.ids, dtype=np.int64)
            whole = left is None or len(ids) <= left
            ids = ids[:left]
            size = len(piece.text.encode()) if whole else end_of_tokens(tokenizer, piece.text, len(ids))[1]
            documents.add(len(ids), size, piece.ends_document and whole)
            arrays.append(ids)
            if left is not None:
                left -= len(ids)
                if left == 0:
                    break
        yield np.concatenate(arrays)
        if left == 0:
            return


def literal_coder(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy of `tokenizer` that treats the names of special tokens as ordinary text."""
    coder = type(tokenizer).from_str(tokenizer.to_str())
    coder.encode_special_tokens = True
    return coder


def end_of_tokens(tokenizer: Tokenizer, text: str, tokens: int, move: bool = False) -> tuple[int, int]:
    """Return where the first `tokens` tokens of `text` end: their number and the UTF-8 bytes that they stand for.

    A character that this place divides is counted completely; with `move` the place moves behind it, which takes a few
    tokens more.
    """
    value = json.loads(tokenizer.to_str())
    value["post_processor"] = None  # some of them exclude spaces from the offsets
    offsets = literal_coder(type(tokenizer).from_str(json.dumps(value))).encode(text, add_special_tokens=False).offsets
    ends = np.maximum.accumulate([stop for _, stop in offsets]) if offsets else np.empty(0, dtype=np.int64)
    while move and 0 < tokens < len(offsets) and offsets[tokens][0] < ends[tokens - 1]:
        tokens += 1
    if tokens >= len(offsets):
        return tokens, len(text.encode())
    return tokens, len(text[: int(ends[tokens - 1]) if tokens else 0].encode())


def _sample(texts: list[Piece], samples: list[str]) -> None:
    room = _SAMPLES - len(samples)
    samples.extend(piece.text[:_SAMPLE_CHARACTERS] for piece in texts[: min(room, _SAMPLES_PER_BATCH)])


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
    """Yield the items while a thread fetches the next one, so that reading overlaps with tokenising."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item
