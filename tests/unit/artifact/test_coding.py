"""Every matrix comes back from its section, which is never larger than its bytes and takes the model that fits it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from questlm.artifact.coding import MOST_EXPANSION, Rows, code_section, entropy_bytes, read_section
from questlm.errors import ArtifactError


def rows_of(symbols: np.ndarray, levels: int) -> Rows:
    """A matrix whose bytes, where it is stored, are a byte for each symbol."""
    return Rows(symbols.shape, levels, symbols.tobytes, lambda run: symbols[run])


def read(section: bytes, shape: tuple[int, int], levels: int) -> np.ndarray:
    file = io.BytesIO(section)
    content, taken = read_section(file, len(section), shape, levels, shape[0] * shape[1])
    assert taken == len(section)
    if isinstance(content, bytes):
        return np.frombuffer(content, np.uint8).reshape(shape)
    return np.concatenate([symbols for _, symbols in content])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 80)))
    levels = draw(st.integers(2, 256))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from((0.0, 0.4, 3.0, 1000.0)))
    along = draw(st.sampled_from(((shape[0], 1), (1, shape[1]), (1, 1))))
    width = np.exp(rng.normal(0, 1, along)) * spread
    values = np.rint(rng.normal(levels / 2, 1, shape) * width)
    return np.clip(values, 0, levels - 1).astype(np.uint8), levels


@given(matrices())
def test_a_matrix_comes_back(case: tuple[np.ndarray, int]) -> None:
    symbols, levels = case
    section = code_section(rows_of(symbols, levels))
    assert np.array_equal(read(section, symbols.shape, levels), symbols)
    assert len(section) <= 8 + symbols.size
    assert symbols.size <= MOST_EXPANSION * len(section)


@given(matrices(), st.data())
def test_a_damaged_section_is_refused_or_has_the_same_shape(case: tuple[np.ndarray, int], data: st.DataObject) -> None:
    symbols, levels = case
    section = bytearray(code_section(rows_of(symbols, levels)))
    section[data.draw(st.integers(0, len(section) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read(bytes(section), symbols.shape, levels)
    except ArtifactError:
        return
    assert found.shape == symbols.shape


def gaussian(shape: tuple[int, int], spread: np.ndarray | float, levels: int = 16) -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 1, shape) * spread + levels / 2
    return np.clip(np.floor(values), 0, levels - 1).astype(np.uint8)


COLUMNS = np.arange(256)
MODELS = {
    1: gaussian((256, 256), 2.0),
    2: gaussian((256, 256), np.repeat([0.7, 4.0], 128)[:, None]),
    3: gaussian((256, 256), np.where(COLUMNS < 64, 0.7, 4.0)[None]),
    4: gaussian((256, 256), np.where(COLUMNS % 4 == 0, 0.5, 4.0)[None]),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_model_that_fits_is_chosen(model: int) -> None:
    section = code_section(rows_of(MODELS[model], 16))
    assert section[0] == model
    assert len(section) < 1.01 * entropy_bytes(rows_of(MODELS[model], 16))


def test_codes_that_cannot_shrink_are_stored() -> None:
    symbols = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    assert code_section(rows_of(symbols, 256)) == struct.pack("<BBBBI", 0, 0, 0, 0, 1024) + symbols.tobytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s[:4], "ends before its last tensor"),
        (lambda s: s[:-1], "go on behind the end"),
        (lambda s: bytes([9]) + s[1:], "number 9"),
        (lambda s: s[:2] + bytes([40]) + s[3:], "does not know"),
        (lambda s: bytes([0]) + s[1:], "bytes where"),
        (lambda s: s[:4] + struct.pack("<I", 2) + s[8:10], "cannot be coded in 2"),
        (lambda s: s[:1] + bytes([0]) + s[2:], "tables of a coded tensor are cut"),
        (lambda s: s[:8] + b"\1\1" + s[10:], "does not add up"),
    ],
)
def test_a_section_that_cannot_be_is_refused_before_it_is_decoded(change, reason: str) -> None:
    section = code_section(rows_of(MODELS[2], 16))
    assert section[0] == 2
    with pytest.raises(ArtifactError, match=reason):
        read(change(section), (256, 256), 16)
