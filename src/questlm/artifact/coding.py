"""One matrix of small integers as a section of a single file: stored as bytes, or entropy-coded by the best model.

A model says by which table of frequencies a symbol is coded. Four are tried, and the smallest section is kept, with the
tables, which the decoder must know, counted in:

    whole      one table
    rows       a table for each 2^p neighbouring rows
    columns    a table for each 2^p neighbouring columns
    places     a table for each place within a block of 2^p columns, because the first entries of a Hadamard block
               are sums and alternating sums of neighbours, which are not spread as the others are

A section is a header of 8 bytes (model, p, log2 of the lanes, 0, and the length of what follows as 4 bytes), then for
`stored` the bytes themselves; for the models the tables, 2 bytes for each level, and a stream for each run of rows of
at most 2^22 symbols, each after its length in 4 bytes. All numbers are little-endian. `questlm.artifact.rans` is the
coder. Sections that would shrink below 1/32 are stored, so that a small file cannot ask for much memory.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from questlm.artifact import rans
from questlm.errors import ArtifactError

__all__ = ["MOST_EXPANSION", "Rows", "code_section", "entropy_bytes", "read_section"]

MOST_EXPANSION = 32
"""How many times its own size a section may grow when it is decoded."""

_HEADER = struct.Struct("<BBBBI")
_LENGTH = struct.Struct("<I")
_STORED, _WHOLE, _ROWS, _COLUMNS, _PLACES = range(5)
_RUN = 1 << 22  # symbols of a stream, so that decoding takes bounded memory
_MOST_TABLES = 128
_LANE_SHARE = 1 / 1000  # of the coded bytes, that the lanes' first states may take
_MOST_LANES = 256

Symbols = NDArray[np.uint8]
_Tables = NDArray[np.int32] | None


class Rows(NamedTuple):
    """A matrix of symbols that is coded.

    Attributes:
        shape: (rows, columns).
        levels: the symbols are below it, 2 to 256.
        stored: its bytes without coding.
        part: the symbols of some rows, (rows, columns) uint8.
    """

    shape: tuple[int, int]
    levels: int
    stored: Callable[[], bytes]
    part: Callable[[slice], Symbols]

    def runs(self) -> Iterator[tuple[slice, Symbols]]:
        """Runs of rows, each of which makes one stream."""
        for rows in _runs(self.shape):
            yield rows, self.part(rows)


class _Model(NamedTuple):
    """Which table codes a symbol: scheme and p of the section's header."""

    scheme: int
    power: int

    def tables(self, shape: tuple[int, int]) -> int:
        """How many tables it has."""
        if self.scheme == _WHOLE:
            return 1
        if self.scheme == _PLACES:
            return 1 << self.power
        return -(-shape[0 if self.scheme == _ROWS else 1] >> self.power) or 1

    def parts(self, rows: slice, columns: int) -> tuple[_Tables, _Tables]:
        """Numbers (rows,) and (columns,) whose sum is the table of a symbol in some rows; None: zeros."""
        if self.scheme == _WHOLE:
            return None, None
        if self.scheme == _ROWS:
            return np.arange(rows.start, rows.stop, dtype=np.int32) >> self.power, None
        places = np.arange(columns, dtype=np.int32)
        return None, places >> self.power if self.scheme == _COLUMNS else places & ((1 << self.power) - 1)

    def classes(self, rows: slice, columns: int) -> NDArray[np.int32] | None:
        """The table of each symbol of some rows, flat; None: all by the first."""
        by_row, by_column = self.parts(rows, columns)
        if by_row is not None:
            return np.repeat(by_row, columns)
        return None if by_column is None else np.tile(by_column, rows.stop - rows.start)


def code_section(matrix: Rows) -> bytes:
    """Return the smallest section that holds the matrix."""
    plain = matrix.stored()
    stored = _HEADER.pack(_STORED, 0, 0, 0, len(plain)) + plain
    model, counts = _best_model(matrix)
    tables = rans.table_of_counts(counts)
    expected = _coded_bytes(counts, tables)
    if expected + _HEADER.size >= len(stored):
        return stored
    lanes = min(_MOST_LANES, 1 << max(0, int(expected * _LANE_SHARE / 2).bit_length() - 1))
    body = [tables.astype("<u2").tobytes()]
    for rows, symbols in matrix.runs():
        stream = _encode(symbols, tables, model, lanes, rows)
        body += [_LENGTH.pack(len(stream)), stream]
    content = b"".join(body)
    if not len(plain) // MOST_EXPANSION <= len(content) < len(plain):
        return stored
    return _HEADER.pack(*model, lanes.bit_length() - 1, 0, len(content)) + content


def read_section(
    file: IO[bytes], left: int, shape: tuple[int, int], levels: int, plain_bytes: int
) -> tuple[bytes | Iterator[tuple[slice, Symbols]], int]:
    """Read a section: its bytes if it is stored, else runs of rows with their symbols, decoded one after another.

    Args:
        file: stands where the section begins, and stands behind it afterwards.
        left: bytes of the file that sections may still take.
        shape, levels: of the matrix.
        plain_bytes: of it where it is stored.

    Returns:
        What it holds, and how many bytes of the file it takes. The runs raise ArtifactError where they are damaged.

    Raises:
        ArtifactError: the section is damaged.
    """
    if left < _HEADER.size:
        raise ArtifactError("the file ends before its last tensor; it is damaged")
    scheme, power, lanes, zero, length = _HEADER.unpack(file.read(_HEADER.size))
    if length > left - _HEADER.size:
        raise ArtifactError("a tensor would go on behind the end of the file; it is damaged")
    if scheme > _PLACES or power > 31 or (1 << lanes) > _MOST_LANES or zero:
        raise ArtifactError(f"a tensor is coded in a way (number {scheme}) that this version of questlm does not know")
    if scheme == _STORED:
        if length != plain_bytes:
            raise ArtifactError(f"a tensor has {length} bytes where {plain_bytes} are stored; it is damaged")
        return file.read(length), _HEADER.size + length
    if plain_bytes > (length + 1) * MOST_EXPANSION:
        raise ArtifactError(f"a tensor of {plain_bytes} bytes cannot be coded in {length}; it is damaged")
    return _decoded(file.read(length), _Model(scheme, power), 1 << lanes, shape, levels), _HEADER.size + length


def entropy_bytes(matrix: Rows) -> float:
    """Bytes of the Shannon entropy of the matrix's symbols, as independent draws from one distribution."""
    counts = _counts(matrix, _Model(_WHOLE, 0))[0]
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum() * counts.sum() / 8)


def _runs(shape: tuple[int, int]) -> Iterator[slice]:
    rows, columns = shape
    step = max(1, _RUN // max(1, columns))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def _decoded(
    content: bytes, model: _Model, lanes: int, shape: tuple[int, int], levels: int
) -> Iterator[tuple[slice, Symbols]]:
    count = model.tables(shape)
    place = 2 * count * levels
    if count > _MOST_TABLES or place > len(content):
        raise ArtifactError("the tables of a coded tensor are cut; it is damaged")
    tables = np.frombuffer(content, "<u2", count * levels).reshape(count, levels)
    for rows in _runs(shape):
        end = place + _LENGTH.size
        length = _LENGTH.unpack(content[place:end])[0] if end <= len(content) else len(content)
        if end + length > len(content):
            raise ArtifactError("the codes of a tensor are cut; it is damaged")
        try:
            symbols = _decode(content[end : end + length], tables, model, lanes, rows, shape[1])
        except ValueError as problem:
            raise ArtifactError(str(problem)) from None
        place = end + length
        yield rows, symbols
    if place != len(content):
        raise ArtifactError("a coded tensor has bytes behind its codes; it is damaged")


def _encode(symbols: Symbols, tables: NDArray[np.uint16], model: _Model, lanes: int, rows: slice) -> bytes:
    columns = symbols.shape[1]
    if (native := _native()) is not None:
        return native.encode(symbols, tables, *model.parts(rows, columns), lanes)
    return rans.encode(symbols.reshape(-1), tables, model.classes(rows, columns), lanes)


def _native() -> ModuleType | None:
    """The native coder, where it can run and torch is there: planning sizes does without torch, and codes little."""
    if "torch" not in sys.modules:
        return None
    from questlm.ops.cpu import rans as native
    from questlm.ops.dispatch import choose

    return native if choose("entropy_coding") == "cpu" else None


def _decode(stream: bytes, tables: NDArray[np.uint16], model: _Model, lanes: int, rows: slice, columns: int) -> Symbols:
    count = rows.stop - rows.start
    if (native := _native()) is not None:
        return native.decode(stream, tables, *model.parts(rows, columns), lanes, (count, columns))
    return rans.decode(stream, tables, model.classes(rows, columns), lanes, count * columns).reshape(count, columns)


def _best_model(matrix: Rows) -> tuple[_Model, NDArray[np.int64]]:
    """The model whose tables and codes take the fewest bytes, and its counts (tables, levels)."""
    rows, columns = matrix.shape
    least_rows, least_columns = (max(0, (-(-n // _MOST_TABLES) - 1).bit_length()) for n in (rows, columns))
    widest_block = min(7, max(0, (columns & -columns).bit_length() - 1))
    finest = [_Model(_ROWS, least_rows), _Model(_COLUMNS, least_columns), _Model(_PLACES, widest_block)]
    found: list[tuple[float, _Model, NDArray[np.int64]]] = []
    for model in finest:
        counts = _counts(matrix, model)
        while True:
            found.append((_coded_bytes(counts, rans.table_of_counts(counts)), model, counts))
            if len(counts) == 1:
                break
            model, counts = _coarser(model, counts)
        found[-1] = (found[-1][0], _Model(_WHOLE, 0), found[-1][2])
    return min(found, key=lambda item: item[0])[1:]


def _coarser(model: _Model, counts: NDArray[np.int64]) -> tuple[_Model, NDArray[np.int64]]:
    """The same scheme with half as many tables."""
    if model.scheme == _PLACES:
        half = len(counts) // 2
        return _Model(_PLACES, model.power - 1), counts[:half] + counts[half:]
    padded = np.concatenate((counts, np.zeros_like(counts[: len(counts) % 2])))
    return _Model(model.scheme, model.power + 1), padded[::2] + padded[1::2]


def _counts(matrix: Rows, model: _Model) -> NDArray[np.int64]:
    """How often each symbol is coded by each table, (tables, levels)."""
    tables, levels = model.tables(matrix.shape), matrix.levels
    counts = np.zeros(tables * levels, np.int64)
    for rows, symbols in matrix.runs():
        classes, flat = model.classes(rows, matrix.shape[1]), symbols.reshape(-1)
        counts += np.bincount(flat if classes is None else classes * levels + flat, minlength=tables * levels)
    return counts.reshape(tables, levels)


def _coded_bytes(counts: NDArray[np.int64], tables: NDArray[np.uint16]) -> float:
    """Bytes of tables and codes, but for the lanes' states."""
    used = counts > 0
    bits = (counts[used] * (rans.PRECISION - np.log2(tables[used]))).sum()
    return 2 * tables.size + float(bits) / 8
