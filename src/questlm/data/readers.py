"""Read text files of every format that we support, as pieces of documents."""

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
from typing import Any, BinaryIO

from questlm.errors import DataError, quoted
from questlm.tokenizer_files import END_OF_TEXT

__all__ = ["ALLOWED", "Piece", "file_kind", "read_pieces", "split_document"]

ALLOWED = ".txt, .md, .py, .jsonl or .parquet (each plain or with .gz, .xz or .zst appended), or .bin token shards"

_TEXT_KINDS = frozenset({".txt", ".md", ".py", ".jsonl", ".parquet"})
_COMPRESSIONS = frozenset({".gz", ".xz", ".zst"})
# Not larger, because a tokenizer needs about 130 bytes of memory per character of a string and one core for it.
_PIECE_CHARACTERS = 2**20
_LINE_BYTES = 2**18  # a longer line may be divided; must be smaller than a piece
_PARQUET_ROWS = 128
_ROW_BYTES = 64 * 2**20  # of one JSON line or one Parquet value: a hundred times a long book
_CHUNK_BYTES = 4 * 2**30  # of one row group of Parquet
_BATCH_BYTES = 2**30  # of Parquet rows read together
# Text compresses to a third, tables of repeated rows to a hundredth. Beyond 1,000 times it is a decompression bomb.
_LARGEST_RATIO = 1000
_ANY_RATIO_BYTES = 256 * 2**20
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Piece:
    """A document or a part of one, and whether the document ends here."""

    text: str
    ends_document: bool
    is_null: bool = False  # stands for a null row, so that null rows can be counted


def file_kind(path: Path) -> str | None:
    """Return the suffix that says what a file contains ('.txt' of 'a.txt.gz'), or None for a file we do not read."""
    kind, compression = _kind_and_compression(path)
    return kind if kind in _TEXT_KINDS or (kind == ".bin" and not compression) else None


def read_pieces(file: BinaryIO, path: Path, text_field: str) -> Iterator[Piece]:
    """Yield the documents of `file`, opened from `path`, in pieces; blank documents are left out.

    A document ends at a line that is exactly `<|endoftext|>` (.txt, .md) or with its file; in .jsonl it is the field
    `text_field` of a line, in .parquet that column of a row. A document of more than 1 Mi characters comes in several
    pieces, divided at line ends where it has any. A byte order mark at the beginning of a file is not text. A null row
    comes as a piece of its own, marked as null.

    Raises:
        DataError: the file is damaged or not as expected, or a row or a compressed file is too large; names the place.
    """
    kind, compression = _kind_and_compression(path)
    try:
        with _decompressed(file, path, compression) as content:
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
    """Yield a document in pieces of at most 1 Mi characters, divided after a line end where there is one."""
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


def _decompressed(file: BinaryIO, path: Path, compression: str) -> BinaryIO:
    content: Any
    if compression == ".gz":
        content = gzip.GzipFile(fileobj=file)
    elif compression == ".xz":
        content = lzma.LZMAFile(file)  # noqa: SIM115 (closed with its reader)
    elif compression == ".zst":
        # Arrow's reader, because that of the package zstandard does not notice a truncated file.
        import pyarrow

        content = pyarrow.CompressedInputStream(file, "zstd")
    else:
        return file
    return io.BufferedReader(_Bounded(content, file, path))


class _Bounded(io.RawIOBase):
    """Decompressed `content`, limited to 1,000 times the bytes of `file` that were read for it, or to 256 MiB."""

    def __init__(self, content: Any, file: BinaryIO, path: Path) -> None:
        self._content, self._file, self._path = content, file, path
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._content.read(len(buffer))
        buffer[: len(read)] = read
        self._given += len(read)
        if self._given > max(_ANY_RATIO_BYTES, _LARGEST_RATIO * self._file.tell()):
            raise DataError(
                f"{self._path} unpacks to more than {_LARGEST_RATIO:,} times its size, which no text does; if it is "
                "meant, unpack it first and name the unpacked file"
            )
        return len(read)

    def close(self) -> None:
        self._content.close()
        super().close()


def _without_blank(pieces: Iterator[Piece]) -> Iterator[Piece]:
    starts = True
    for piece in pieces:
        whole = starts and piece.ends_document and not piece.is_null
        if not (whole and (not piece.text or piece.text.isspace())):
            yield piece
        starts = piece.ends_document


def _text_pieces(content: BinaryIO, path: Path, separated: bool) -> Iterator[Piece]:
    lines: list[str] = []
    size = 0
    starts_line = True
    for line in _lines(content, path):
        if separated and starts_line and line.rstrip("\r\n") == END_OF_TEXT:
            yield Piece("".join(lines), ends_document=True)
            lines, size = [], 0
            continue
        if size + len(line) > _PIECE_CHARACTERS:
            yield Piece("".join(lines), ends_document=False)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
        starts_line = line.endswith("\n")
    yield Piece("".join(lines), ends_document=True)


def _lines(content: BinaryIO, path: Path) -> Iterator[str]:
    """Yield lines with their ends unchanged; a long line comes in parts."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        chunk = content.readline(_LINE_BYTES)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as problem:
            left_over = len(problem.object) - len(chunk)
            raise _not_utf8(path, offset - left_over + problem.start) from None
        if offset == 0:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if text:
            yield text
        if not chunk:
            return
        offset += len(chunk)


def _json_pieces(content: BinaryIO, path: Path, text_field: str) -> Iterator[Piece]:
    offset = number = 0
    while line := content.readline(_ROW_BYTES + 1):
        number += 1
        place = f"{path}:{number}"
        if len(line) > _ROW_BYTES:
            raise _too_long(place)
        row = line.removeprefix(_BYTE_ORDER_MARK.encode()) if offset == 0 else line
        if row and not row.isspace():
            text = _json_text(row, place, path, offset + len(line) - len(row), text_field)
            yield from [_NULL] if text is None else split_document(text)
        offset += len(line)


def _json_text(line: bytes, place: str, path: Path, offset: int, text_field: str) -> str | None:
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
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{place} holds half of a surrogate pair in {quoted(text_field)}, which no UTF-8 text can; repair it"
        ) from None
    return text


def _parquet_pieces(content: BinaryIO, path: Path, text_field: str, compressed: bool) -> Iterator[Piece]:
    from pyarrow import ArrowException

    with tempfile.TemporaryFile() as unpacked:
        if compressed:  # Parquet is read from its end, which a compressed stream cannot do
            shutil.copyfileobj(content, unpacked)
            unpacked.seek(0)
        try:
            for row, value in enumerate(_parquet_values(unpacked if compressed else content, path, text_field)):
                text = _string(value, f"{path} row {row}", text_field)
                yield from [_NULL] if text is None else split_document(text)
        except (ArrowException, UnicodeDecodeError) as problem:
            raise DataError(
                f"{path} is not a readable Parquet file: {quoted(str(problem), 200)}; it is incomplete or damaged"
            ) from None


def _parquet_values(content: Any, path: Path, text_field: str) -> Iterator[object]:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(content)
    names = table.schema_arrow.names
    if text_field not in names:
        raise DataError(
            f"{path} has no column {quoted(text_field)}, only {quoted(names)}; set data.text_field to one of them"
        )
    for number in range(table.num_row_groups):
        rows = _rows_at_once(table, number, path)
        for batch in table.iter_batches(rows, row_groups=[number], columns=[text_field]):
            yield from batch.column(0).to_pylist()


def _rows_at_once(table: Any, number: int, path: Path) -> int:
    """Return how many rows of a row group to read together; DataError where its metadata announce too much."""
    # Summed over all columns, because the library aborts the process when asked for the metadata of a damaged one.
    size = table.metadata.row_group(number).total_byte_size
    if not 0 <= size <= _CHUNK_BYTES:
        raise DataError(
            f"{path} holds {size:,} bytes in one row group, but at most {_CHUNK_BYTES:,} are read; "
            "write it with smaller row groups"
        )
    # Each row may be the longest entry of a dictionary, however few bytes the rows have in the file.
    return max(1, min(_PARQUET_ROWS, _BATCH_BYTES // max(1, size)))


def _string(value: object, place: str, text_field: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DataError(f"{place} holds {type(value).__name__} in {quoted(text_field)}, but text must be a string")
    if value is not None and len(value) > _ROW_BYTES:
        raise _too_long(place)
    return value


def _too_long(place: str) -> DataError:
    return DataError(
        f"{place} is longer than {_ROW_BYTES:,} bytes, the most that one document of a table may have; put such a text "
        "into a .txt file of its own, which is read piece by piece"
    )


def _not_utf8(path: Path, offset: int) -> DataError:
    return DataError(f"{path} is not UTF-8 text: byte {offset} does not fit; convert the file to UTF-8")


_NULL = Piece("", ends_document=True, is_null=True)
