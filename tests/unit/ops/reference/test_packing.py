"""Bits on disk: every width, any length, any leading shape, in the documented order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from questlm import ops

LEVELS = [2, 3, 4, 8, 16, 32, 64, 128, 256]
SHAPES = st.lists(st.integers(0, 3), max_size=2).flatmap(
    lambda leading: st.integers(0, 70).map(lambda n: (*leading, n))
)
quick = settings(deadline=None, max_examples=25)


def codes_of(levels: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, levels, shape, dtype=torch.uint8, generator=generator)


def packed_by_hand(row: list[int], levels: int) -> bytes:
    """Little-endian: the first code takes the lowest bits (digits, for three levels) of the first byte."""
    if levels == 3:
        groups = [row[i : i + 5] for i in range(0, len(row), 5)]
        return bytes(sum(digit * 3**i for i, digit in enumerate(group)) for group in groups)
    bits = levels.bit_length() - 1
    number = sum(code << (i * bits) for i, code in enumerate(row))
    return number.to_bytes((len(row) * bits + 7) // 8, "little")


@pytest.mark.parametrize("levels", LEVELS)
@quick
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_codes_come_back(levels, shape, seed):
    codes = codes_of(levels, shape, seed)
    packed = ops.pack(codes, levels)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], ops.packed_width(shape[-1], levels))
    back = ops.unpack(packed, levels, shape[-1])
    assert back.dtype == torch.uint8
    assert torch.equal(back, codes)


@pytest.mark.parametrize("levels", LEVELS)
@quick
@given(n=st.integers(0, 70), seed=st.integers(0, 2**31))
def test_bytes_are_in_the_documented_order_with_spare_bits_zero(levels, n, seed):
    codes = codes_of(levels, (2, n), seed)
    expected = [list(packed_by_hand(row, levels)) for row in codes.tolist()]
    assert ops.pack(codes, levels).tolist() == expected


@pytest.mark.parametrize("levels", LEVELS)
@quick
@given(n=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_unpack_ignores_spare_bits(levels, n, seed):
    codes = codes_of(levels, (n,), seed)
    packed = ops.pack(codes, levels)
    spare = 8 * len(packed) - n * (levels - 1).bit_length()
    if levels != 3 and spare:
        packed[-1] |= 0xFF << (8 - spare) & 0xFF
    assert torch.equal(ops.unpack(packed, levels, n), codes)


@pytest.mark.parametrize(
    ("levels", "length", "width"),
    [(2, 8, 1), (2, 9, 2), (4, 5, 2), (8, 8, 3), (8, 9, 4), (16, 3, 2), (128, 8, 7), (256, 5, 5), (3, 5, 1), (3, 6, 2)]
    + [(levels, 0, 0) for levels in LEVELS],
)
def test_width_is_the_fewest_whole_bytes(levels, length, width):
    assert ops.packed_width(length, levels) == width


def test_a_packed_matrix_of_four_bits_is_nibbles_lowest_first():
    codes = torch.tensor([[1, 2, 3], [15, 0, 7]], dtype=torch.uint8)
    assert ops.pack(codes, 16).tolist() == [[0x21, 0x03], [0x0F, 0x07]]


def test_five_ternary_codes_are_one_byte_of_base_three():
    codes = torch.tensor([2, 1, 0, 0, 2, 1], dtype=torch.uint8)
    assert ops.pack(codes, 3).tolist() == [2 + 3 + 2 * 81, 1]


def test_packing_needs_no_contiguous_codes():
    codes = codes_of(8, (9, 4), seed=0).T
    assert torch.equal(ops.pack(codes, 8), ops.pack(codes.contiguous(), 8))
