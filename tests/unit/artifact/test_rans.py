"""Every list of symbols comes back from its code, whose size is that of the entropy; damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from questlm.artifact import rans


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None, int, int, int]:
    """Symbols, their classes, the number of classes, levels and lanes."""
    levels, tables = draw(st.integers(1, 256)), draw(st.integers(1, 5))
    count, seed = draw(st.integers(1, 400)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    spread = draw(st.sampled_from((0.3, 3.0, 300.0)))
    symbols = np.clip(rng.normal(levels / 2, spread, count), 0, levels - 1).astype(np.uint8)
    classes = rng.integers(0, tables, count) if tables > 1 else None
    return symbols, classes, tables, levels, draw(st.sampled_from((1, 2, 7, 64)))


def tables_of(symbols: np.ndarray, classes: np.ndarray | None, tables: int, levels: int) -> np.ndarray:
    row = np.zeros(len(symbols), int) if classes is None else classes
    return rans.table_of_counts(np.bincount(row * levels + symbols, minlength=tables * levels).reshape(tables, levels))


@given(cases())
def test_symbols_come_back(case: tuple[np.ndarray, np.ndarray | None, int, int, int]) -> None:
    symbols, classes, tables, levels, lanes = case
    table = tables_of(symbols, classes, tables, levels)
    stream = rans.encode(symbols, table, classes, lanes)
    assert np.array_equal(rans.decode(stream, table, classes, lanes, len(symbols)), symbols)


@given(cases(), st.data())
def test_damage_is_found_or_gives_as_many_symbols(case, data: st.DataObject) -> None:
    symbols, classes, tables, levels, lanes = case
    table = tables_of(symbols, classes, tables, levels)
    stream = bytearray(rans.encode(symbols, table, classes, lanes))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(st.integers(1, 255))
    try:
        read = rans.decode(bytes(stream), table, classes, lanes, len(symbols))
    except ValueError:
        return
    assert read.shape == symbols.shape
    assert (read < levels).all()


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=256))
def test_a_table_adds_up_and_has_every_symbol_that_occurs(counts: list[int]) -> None:
    table = rans.table_of_counts(np.array(counts))
    assert table.sum(dtype=int) == 1 << rans.PRECISION
    assert (table[np.array(counts) > 0] > 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_of_gaussian_weights_take_hardly_more_than_their_entropy(bits: int) -> None:
    rng = np.random.default_rng(bits)
    symbols = np.clip(np.floor(rng.normal(2 ** (bits - 1), 2**bits / 6, 300_000)), 0, 2**bits - 1).astype(np.uint8)
    counts = np.bincount(symbols, minlength=2**bits)
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * np.log2(share)).sum() * len(symbols) / 8
    assert len(rans.encode(symbols, rans.table_of_counts(counts)[None], None, 16)) < 1.002 * entropy


def test_the_code_is_the_same_on_every_machine() -> None:
    symbols = (np.arange(40) ** 2 % 5).astype(np.uint8)
    table = rans.table_of_counts(np.bincount(symbols, minlength=5)[None])
    assert table.tolist() == [[3276, 6555, 0, 0, 6553]]
    assert rans.encode(symbols, table, None, 2).hex() == "fa81d762a39674523ecb1220"
