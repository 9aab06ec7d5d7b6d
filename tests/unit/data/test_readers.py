from __future__ import annotations

import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from questlm.data import readers
from questlm.data.readers import Piece, read_pieces, split_document
from questlm.errors import DataError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
compressions = pytest.mark.parametrize("compression", COMPRESS)


def pieces_of(content: bytes, name: str, text_field: str = "text") -> list[Piece]:
    return list(read_pieces(io.BytesIO(content), Path(name), text_field))


def texts_of(content: bytes, name: str, text_field: str = "text") -> list[str]:
    pieces = pieces_of(content, name, text_field)
    assert all(piece.ends_document for piece in pieces)
    return [piece.text for piece in pieces]


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, row_group_size=2)
    return sink.getvalue()


@compressions
def test_every_form_and_compression(compression: str) -> None:
    compress = COMPRESS[compression]
    rows = [{"text": "erste Zeile ä\nzweite"}, {"text": "x"}, {"text": "世界"}]
    plain = "\n<|endoftext|>\n".join(row["text"] for row in rows).encode()
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    table = parquet_bytes({"other": [1, 2, 3], "text": [row["text"] for row in rows]})
    texts = [row["text"] for row in rows]
    assert texts_of(compress(plain), f"a.txt{compression}") == [texts[0] + "\n", texts[1] + "\n", texts[2]]
    assert texts_of(compress(plain), f"a.md{compression}") == [texts[0] + "\n", texts[1] + "\n", texts[2]]
    assert texts_of(compress(plain), f"a.py{compression}") == [plain.decode()]
    assert texts_of(compress(lines), f"a.jsonl{compression}") == texts
    assert texts_of(compress(table), f"a.PARQUET{compression}") == texts


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_truncated_and_corrupt_compression(compression: str, kind: str) -> None:
    text = "".join(chr(32 + i * i % 90) for i in range(5000))
    plain = {".txt": text.encode(), ".jsonl": json.dumps({"text": text}).encode()}.get(kind)
    packed = COMPRESS[compression](plain or parquet_bytes({"text": [text]}))
    for bad in (packed[:-9], packed[: len(packed) // 2], b"nonsense" + packed):
        with pytest.raises(DataError, match=rf"a{kind}{compression} .*incomplete or damaged"):
            pieces_of(bad, f"a{kind}{compression}")


def test_only_a_line_that_is_exactly_the_separator_separates() -> None:
    text = "a <|endoftext|>\n <|endoftext|>\n<|endoftext|>b\n<|endoftext|>\r\nc\n<|endoftext|>"
    assert texts_of(text.encode(), "a.txt") == ["a <|endoftext|>\n <|endoftext|>\n<|endoftext|>b\n", "c\n"]


def test_a_separator_inside_a_long_line_does_not_separate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_LINE_BYTES", 20)
    text = "x" * 20 + "<|endoftext|>\nb"
    assert texts_of(text.encode(), "a.txt") == [text]


def test_blank_documents_are_left_out() -> None:
    separator = "<|endoftext|>\n"
    assert texts_of(f"{separator}{separator} \n\n{separator}a\n{separator}".encode(), "a.txt") == ["a\n"]
    assert texts_of(b'{"text": ""}\n\n{"text": " "}\n{"text": "b"}\n', "a.jsonl") == ["b"]
    assert texts_of(b"", "a.txt") == []


@given(st.lists(st.text(alphabet="aé世\n ", max_size=40), max_size=6), st.integers(1, 12))
def test_streamed_text_is_the_text(documents: list[str], limit: int) -> None:
    content = "\n<|endoftext|>\n".join(documents).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_PIECE_CHARACTERS", limit + 13)
        patch.setattr(readers, "_LINE_BYTES", limit + 13)
        pieces = pieces_of(content, "a.txt")
    assert all(len(piece.text) <= limit + 13 for piece in pieces)
    joined = "".join(piece.text + ("\0" if piece.ends_document else "") for piece in pieces).split("\0")[:-1]
    expected = [document + "\n" for document in documents[:-1]] + documents[-1:]
    assert [text for text in joined if text.strip()] == [text for text in expected if text.strip()]


@given(st.text(alphabet="ab\n", max_size=60), st.integers(1, 10))
def test_split_document_keeps_the_text(text: str, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_PIECE_CHARACTERS", limit)
        pieces = list(split_document(text))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for piece in pieces[:-1]:
        assert piece.text.endswith("\n") or (len(piece.text) == limit and "\n" not in piece.text)


def test_a_long_document_is_cut_at_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_PIECE_CHARACTERS", 10)
    monkeypatch.setattr(readers, "_LINE_BYTES", 10)
    expected = [Piece("four\nfour\n", False), Piece("seven..\n", False), Piece("x\n", True)]
    text = "four\nfour\nseven..\nx\n"
    assert pieces_of(text.encode(), "a.txt") == [expected[0], Piece("seven..\nx\n", True)]
    assert list(split_document("four\nfour\nseven..\nfour\n"))[:2] == expected[:2]


@pytest.mark.parametrize("line_bytes", [4, 1000])
def test_invalid_utf8_names_the_byte(monkeypatch: pytest.MonkeyPatch, line_bytes: int) -> None:
    monkeypatch.setattr(readers, "_LINE_BYTES", line_bytes)
    for content, offset in ((b"ab\ncd\xffe\n", 5), ("é世".encode()[:-1], 2), (b"a\nbcd\xe4\xb8x", 5)):
        with pytest.raises(DataError, match=rf"a\.txt is not UTF-8 text: byte {offset} "):
            pieces_of(content, "a.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", r"a\.jsonl:2 is not JSON"),
        (b"[" * 100_000, r"a\.jsonl:2 is not JSON"),
        (b'"text"', r"a\.jsonl:2 is not a JSON object"),
        (b'{"body": "b", "a": 1}', r"a\.jsonl:2 has no field 'text', only \['a', 'body'\]"),
        (b'{"text": 5}', r"a\.jsonl:2 holds int in 'text'"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:2 holds half of a surrogate pair"),
        (b'{"text": "\xff"}', r"a\.jsonl is not UTF-8 text: byte 24 "),
    ],
)
def test_bad_json_lines_name_file_and_line(line: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pieces_of(b'{"text": "a"}\n' + line + b"\n", "a.jsonl")


def test_text_field_chooses_field_and_column() -> None:
    assert texts_of(b'{"text": 1, "body": "b"}', "a.jsonl", "body") == ["b"]
    assert texts_of(parquet_bytes({"text": [1], "body": ["b"]}), "a.parquet", "body") == ["b"]


def test_bad_parquet() -> None:
    table = parquet_bytes({"a": ["x"], "b": [1]})
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text', only \['a', 'b'\]"):
        pieces_of(table, "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet row 0 holds int in 'b'"):
        pieces_of(table, "a.parquet", "b")
    assert [piece.is_null for piece in pieces_of(parquet_bytes({"text": ["x", None]}), "a.parquet")] == [False, True]
    for bad in (table[:-5], b"nonsense", b""):
        with pytest.raises(DataError, match="incomplete or damaged"):
            pieces_of(bad, "a.parquet")


# Bounds


def test_a_line_of_json_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_ROW_BYTES", 100)
    longest = b'{"text": "' + b"a" * 87 + b'"}\n'
    assert len(longest) == 100
    assert texts_of(longest, "a.jsonl") == ["a" * 87]
    for line in (b'{"text": "' + b"a" * 88 + b'"}\n', b"a" * 10_000):
        with pytest.raises(
            DataError, match=r"a\.jsonl:2 is longer than 100 bytes.*; put such a text into a \.txt file"
        ):
            pieces_of(b'{"text": "b"}\n' + line, "a.jsonl")


def test_a_line_of_gigabytes_in_a_small_file_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "one-line.jsonl.zst"
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(b'{"text": "')
        for _ in range(6):
            file.write(b"a" * (1 << 24))
    tracemalloc.start()
    with path.open("rb") as opened, pytest.raises(DataError, match=r"one-line\.jsonl\.zst:1 is longer than 67,108,864"):
        list(read_pieces(opened, path, "text"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2**26


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".parquet"])
def test_what_unpacks_without_end_is_refused(compression: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_ANY_RATIO_BYTES", 2**16)
    monkeypatch.setattr(readers, "_LARGEST_RATIO", 100)
    packed = COMPRESS[compression](b"a line\n" * 10**6)
    with pytest.raises(DataError, match=rf"a{kind}{compression} unpacks to more than 100 times its size"):
        pieces_of(packed, f"a{kind}{compression}")
    words = "".join(chr(97 + i * i % 26) for i in range(30_000)).encode()
    monkeypatch.setattr(readers, "_ANY_RATIO_BYTES", 2**20)
    assert texts_of(COMPRESS[compression](words), f"a.txt{compression}") == [words.decode()]


def test_a_row_of_parquet_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_ROW_BYTES", 100)
    assert texts_of(parquet_bytes({"text": ["a" * 100]}), "a.parquet") == ["a" * 100]
    with pytest.raises(DataError, match=r"a\.parquet row 1 is longer than 100 bytes"):
        pieces_of(parquet_bytes({"text": ["a", "b" * 101]}), "a.parquet")
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 50)
    with pytest.raises(DataError, match="in one row group, but at most 50 are read; write it with smaller row groups"):
        pieces_of(parquet_bytes({"text": ["b" * 101]}), "a.parquet")


def test_rows_of_a_large_dictionary_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BATCH_BYTES", 10_000)
    read, sizes = pyarrow.parquet.ParquetFile.iter_batches, []

    def measured(self: Any, *values: Any, **options: Any) -> Iterator[Any]:
        for batch in read(self, *values, **options):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", measured)
    rows = ["a" * 1000, "b"] * 40
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), sink, row_group_size=80)
    assert texts_of(sink.getvalue(), "a.parquet") == rows
    assert max(sizes) <= 10_000 < sum(sizes)


def test_a_line_of_nothing_but_a_byte_order_mark_is_blank() -> None:
    mark = "\ufeff".encode()
    for blank in (mark, mark + b"\n", mark + b"\n\n"):
        assert texts_of(blank, "a.jsonl") == []
    assert texts_of(mark + b'\n{"text": "a"}', "a.jsonl") == ["a"]
    with pytest.raises(DataError, match="byte 13 does not fit"):
        texts_of(mark + b'{"text": "' + b"\xff" + b'"}', "a.jsonl")


def test_a_parquet_column_whose_metadata_do_not_fit_its_type_is_refused() -> None:
    # Asked for the metadata of such a column, Arrow ends the process (std::terminate).
    table = bytearray(parquet_bytes({"text": ["a" * 30]}))
    schema = bytes.fromhex("150c") + bytes(
        [0x25]
    )  # in the footer: the type BYTE_ARRAY, and that the column is optional
    at = table.rindex(schema)
    table[at + 1] = 0  # BOOLEAN
    with pytest.raises(DataError, match=r"a\.parquet .*; it is incomplete or damaged"):
        pieces_of(bytes(table), "a.parquet")
