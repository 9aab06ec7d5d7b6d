"""The native coder gives the streams and symbols of the reference, and refuses what it refuses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from questlm.artifact import rans
from questlm.ops import unavailable
from questlm.ops.cpu.rans import decode, encode

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason="no native kernels here")


class Case(NamedTuple):
    """Symbols, and how they are coded."""

    symbols: np.ndarray
    tables: np.ndarray
    by_row: np.ndarray | None
    by_column: np.ndarray | None
    lanes: int

    @property
    def classes(self) -> np.ndarray:
        rows, columns = self.symbols.shape
        by_row = np.zeros(rows, np.int32) if self.by_row is None else self.by_row
        by_column = np.zeros(columns, np.int32) if self.by_column is None else self.by_column
        return (by_row[:, None] + by_column).reshape(-1)

    def coded(self) -> bytes:
        return rans.encode(self.symbols.reshape(-1), self.tables, self.classes, self.lanes)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(st.integers(1, 12)), draw(st.sampled_from((1, 3, 40, 1500)))
    levels, rng = draw(st.integers(1, 256)), np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from((0.3, 3.0, 300.0)))
    symbols = np.clip(rng.normal(levels / 2, spread, shape), 0, levels - 1).astype(np.uint8)
    by_row, by_column = (
        rng.integers(0, 3, length).astype(np.int32) if draw(st.booleans()) else None for length in shape
    )
    case = Case(symbols, np.empty(0), by_row, by_column, draw(st.sampled_from((1, 2, 64, 256))))
    counts = np.bincount(case.classes * levels + symbols.reshape(-1), minlength=5 * levels).reshape(5, levels)
    return case._replace(tables=rans.table_of_counts(counts))


def of_reference(stream: bytes, case: Case) -> np.ndarray | None:
    try:
        return rans.decode(stream, case.tables, case.classes, case.lanes, case.symbols.size).reshape(case.symbols.shape)
    except ValueError:
        return None


def native(stream: bytes, case: Case) -> np.ndarray | None:
    try:
        return decode(stream, case.tables, case.by_row, case.by_column, case.lanes, case.symbols.shape)
    except ValueError:
        return None


@given(cases())
def test_symbols_are_coded_as_the_reference_does_and_come_back(case: Case) -> None:
    assert encode(case.symbols, case.tables, case.by_row, case.by_column, case.lanes) == case.coded()
    assert np.array_equal(native(case.coded(), case), case.symbols)


@given(cases(), st.data())
def test_damage_gives_what_the_reference_makes_of_it(case: Case, data: st.DataObject) -> None:
    stream = bytearray(case.coded())
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from((0, 0, 1, 2, 6)))
    damaged = bytes(stream[: len(stream) - cut]) + bytes(data.draw(st.sampled_from((0, 0, 2))))
    own, wanted = native(damaged, case), of_reference(damaged, case)
    assert (own is None) == (wanted is None)
    assert own is None or np.array_equal(own, wanted)


def test_what_would_read_beside_the_tables_is_refused() -> None:
    tables = np.array([[1 << rans.PRECISION]], np.uint16)
    stream = (1 << 16).to_bytes(4, "little")
    one = np.zeros(1, np.int32)
    assert decode(stream, tables, None, None, 1, (1, 1)).tolist() == [[0]]
    for wrong in ((tables, one + 1, None, 1), (tables, None, one - 1, 1), (tables, None, None, 3)):
        with pytest.raises(ValueError, match="cannot be"):
            decode(stream, *wrong, (1, 1))
    for frequencies in ([[1]], [[1 << 14, 1]], [[(1 << 16) - 1, 1]]):
        with pytest.raises(ValueError, match="does not add up"):
            decode(stream, np.array(frequencies, np.uint16), None, None, 1, (1, 1))
    for symbol, wrong in ((1, None), (0, one + 1)):
        with pytest.raises(ValueError, match="cannot be coded"):
            encode(np.full((1, 1), symbol, np.uint8), tables, wrong, None, 1)
    with pytest.raises(ValueError, match="number of bytes"):
        decode(stream[:3], tables, None, None, 1, (1, 1))
