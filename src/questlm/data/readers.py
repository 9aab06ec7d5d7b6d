"""Files of text in any of the forms we read, as a stream of pieces of documents."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from questlm.errors import DataError, quoted
from questlm.vocabulary import END_OF_TEXT

__all__ = ["ALLOWED", "Piece", "file_kind", "read_pieces", "split_document"]

ALLOWED = ".txt, .md, .py, .jsonl or .parquet (each plain or with .gz, .xz or .zst appended), or .bin token shards"

_TEXT_KINDS = frozenset({".txt", ".md", ".py", ".jsonl", ".parquet"})
_COMPRESSIONS = frozenset({".gz", ".xz", ".zst"})
# A tokenizer needs about 130 bytes of memory per character of one string, and one core reads it: hence not larger.
_PIECE_CHARACTERS = 2**20
_LINE_BYTES = 2**18  # a line longer than this may be cut inside; must be smaller than a piece
_PARQUET_ROWS = 128


@dataclass(frozen=True)
class Piece:
    """Part of a document, or the whole of it, and whether the document ends here."""

    text: str
    ends_document: bool


def file_kind(path: Path) -> str | None:
    """'.txt', '.md', '.py', '.jsonl', '.parquet' or '.bin', whatever the compression; None for any other file."""
    kind, compression = _kind_and_compression(path)
    return kind if kind in _TEXT_KINDS or (kind == ".bin" and not compression) else None


def read_pieces(file: BinaryIO, path: Path, text_field: str) -> Iterator[Piece]:
    """Pieces of the documents of `file`, opened from `path`; blank documents are left out.

    A document ends at a line that is exactly `<|endoftext|>` (.txt, .md) or with its file; in .jsonl it is the field
    `text_field` of a line, in .parquet that column of a row. A document of more than 1 Mi characters comes in pieces,
    cut at line ends where it has any. Raises DataError naming the place where the file is damaged or not as expected.
    """
    kind, compression = _kind_and_compression(path)
    try:
        with _decompressed(file, compression) as content:
            if kind == ".jsonl":
                pieces = _json_pieces(content, path, text_field)
            elif kind == ".parquet":
                pieces = _parquet_pieces(content, path, text_field, compressed=bool(compression))
            else:
                pieces = _text_pieces(content, path, separated=kind != ".py")
            yield from _without_blank(pieces)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
        raise DataError(f"{path} cannot be read to its end: {problem}; it is incomplete or damaged") from None


def split_document(text: str) -> Iterator[Piece]:
    """A whole document as pieces of at most 1 Mi characters, cut behind a line end where there is one."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        limit = start + _PIECE_CHARACTERS
        stop = text.rfind("\n", start, limit) + 1 or limit
        yield Piece(text[start:stop], ends_document=False)
        start = stop
    yield Piece(text[start:], ends_document=True)


def _kind_and_compression(path: Path) -> tuple[str, str]:
    compression = path.suffix.lower()
    if compression not in _COMPRESSIONS:
        return compression, ""
    return path.with_suffix("").suffix.lower(), compression


def _decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if compression == ".xz":
        return cast(BinaryIO, lzma.open(file))
    if compression == ".zst":
        # Arrow's reader, because the one of the package zstandard takes a truncated file for a whole one.
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    return file


def _without_blank(pieces: Iterator[Piece]) -> Iterator[Piece]:
    starts = True
    for piece in pieces:
        whole = starts and piece.ends_document
        if not (whole and (not piece.text or piece.text.isspace())):
            yield piece
        starts = piece.ends_document


def _text_pieces(content: BinaryIO, path: Path, separated: bool) -> Iterator[Piece]:
    held: list[str] = []
    size = 0
    starts_line = True
    for line in _lines(content, path):
        if separated and starts_line and line.rstrip("\r\n") == END_OF_TEXT:
            yield Piece("".join(held), ends_document=True)
            held, size = [], 0
            continue
        if size + len(line) > _PIECE_CHARACTERS:
            yield Piece("".join(held), ends_document=False)
            held, size = [], 0
        held.append(line)
        size += len(line)
        starts_line = line.endswith("\n")
    yield Piece("".join(held), ends_document=True)


def _lines(content: BinaryIO, path: Path) -> Iterator[str]:
    """Lines with their ends, exactly as they stand; a long one comes in parts."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        chunk = content.readline(_LINE_BYTES)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as problem:
            left_over = len(problem.object) - len(chunk)
            raise _not_utf8(path, offset - left_over + problem.start) from None
        if text:
            yield text
        if not chunk:
            return
        offset += len(chunk)


def _json_pieces(content: BinaryIO, path: Path, text_field: str) -> Iterator[Piece]:
    offset = 0
    for number, line in enumerate(content, start=1):
        if not line.isspace():
            yield from split_document(_json_text(line, f"{path}:{number}", path, offset, text_field))
        offset += len(line)


def _json_text(line: bytes, place: str, path: Path, offset: int, text_field: str) -> str:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as problem:
        raise _not_utf8(path, offset + problem.start) from None
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{place} is not JSON ({problem}); each line of a .jsonl file must be a JSON object") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is not a JSON object; each line must be one, with the text in {quoted(text_field)}")
    if text_field not in row:
        raise DataError(
            f"{place} has no field {quoted(text_field)}, only {quoted(sorted(row))}; set data.text_field to one of them"
        )
    text = _string(row[text_field], place, text_field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{place} holds half of a surrogate pair in {quoted(text_field)}, which no UTF-8 text can; repair it"
        ) from None
    return text


def _parquet_pieces(content: BinaryIO, path: Path, text_field: str, compressed: bool) -> Iterator[Piece]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with tempfile.TemporaryFile() as unpacked:
        if compressed:  # Parquet is read from its end, which a compressed stream cannot do
            shutil.copyfileobj(content, unpacked)
            unpacked.seek(0)
        try:
            table = ParquetFile(unpacked if compressed else content)
            names = table.schema_arrow.names
            if text_field not in names:
                raise DataError(
                    f"{path} has no column {quoted(text_field)}, only {quoted(names)}; "
                    f"set data.text_field to one of them"
                )
            row = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    yield from split_document(_string(value, f"{path} row {row}", text_field))
                    row += 1
        except (ArrowException, UnicodeDecodeError) as problem:
            raise DataError(f"{path} is not a readable Parquet file: {problem}; it is incomplete or damaged") from None


def _string(value: object, place: str, text_field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} holds {type(value).__name__} in {quoted(text_field)}, but text must be a string")
    return value


def _not_utf8(path: Path, offset: int) -> DataError:
    return DataError(f"{path} is not UTF-8 text: byte {offset} does not fit; convert the file to UTF-8")
