"""From pieces of text to tokens, with every core and a bounded amount of memory."""

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
from questlm.vocabulary import library_failures

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Documents", "cut_behind", "literal_coder", "tokenise"]

_BATCH_CHARACTERS = 4 * 2**20
_BATCH_PIECES = 16_384
_SAMPLES, _SAMPLES_PER_BATCH, _SAMPLE_CHARACTERS = 256, 64, 1024

Item = TypeVar("Item")


@dataclass
class Documents:
    """What was tokenised: tokens (end-of-text included) and UTF-8 bytes (excluded) of each whole document, in order.

    The bytes are those of the text as it was read, whatever the tokenizer makes of it. This is the one place where they
    are counted.

    Attributes:
        cut_tokens, cut_bytes: of the last document behind them, which was not taken to its end.
        pieces: tokens of each piece.
        null_rows: rows that held null instead of text.
        samples: beginnings of pieces from all over the text, at most 256 KiB together.
    """

    tokens: array[int] = field(default_factory=lambda: array("q"))
    text_bytes: array[int] = field(default_factory=lambda: array("q"))
    cut_tokens: int = 0
    cut_bytes: int = 0
    pieces: array[int] = field(default_factory=lambda: array("q"))
    null_rows: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def all_bytes(self) -> int:
        """UTF-8 bytes of all text."""
        return sum(self.text_bytes) + self.cut_bytes

    def add(self, tokens: int, text_bytes: int, ends_document: bool) -> None:
        """Count one piece."""
        self.pieces.append(tokens)
        self.cut_tokens += tokens
        self.cut_bytes += text_bytes
        if ends_document:
            self.tokens.append(self.cut_tokens)
            self.text_bytes.append(self.cut_bytes)
            self.cut_tokens = self.cut_bytes = 0


def tokenise(
    pieces: Iterator[Piece], tokenizer: Tokenizer, end: int, limit: int | None, documents: Documents
) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of `pieces` in arrays, the token `end` behind each document; stop after `limit` tokens.

    `documents` is filled along the way. A text that spells a special token, such as '<|endoftext|>', is text: only a
    document's real end gives that token.
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
            size = len(piece.text.encode()) if whole else cut_behind(tokenizer, piece.text, len(ids))[1]
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
    """A copy of `tokenizer` for which the names of special tokens are text like any other."""
    coder = type(tokenizer).from_str(tokenizer.to_str())
    coder.encode_special_tokens = True
    return coder


def cut_behind(tokenizer: Tokenizer, text: str, tokens: int, move: bool = False) -> tuple[int, int]:
    """Where the first `tokens` tokens of `text` end: their number, and the UTF-8 bytes that they stand for.

    A character that the cut divides counts among these bytes as a whole; with `move` the cut is put behind it, by
    taking a few tokens more.
    """
    value = json.loads(tokenizer.to_str())
    value["post_processor"] = None  # some of them take spaces out of the offsets
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
    """The same items, the next always being fetched in a thread: reading and unpacking go on while we tokenise."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item
