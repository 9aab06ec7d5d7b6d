"""How the GPU kernels keep packed weights: rows of 32-bit words that expand to bytes by masks alone.

A row of K codes of b bits (1, 2, 4 or 8) fills 8 / b planes of P bytes, P the least multiple of 16 with 8 P / b >= K.
Plane i is bits b i ... b i + b - 1 of every byte of the row, and byte p of plane i holds code k = i P + p. So masking
and shifting a word gives the codes of four neighbouring entries, one a byte, and these meet four neighbouring codes of
the input in the order in which it is stored. A word of 4-bit codes takes two masks and a shift for eight codes.

Codes of 3 bits are two such matrices, one of the two low bits and one of the high bit. Ternary codes take 2 bits here:
dividing by three in the loop costs more than the fifth of a byte a code that it saves. Grids of 5 to 8 bits take 8, and
their codes are kept as signed bytes, 128 below.

One-bit weights that meet input codes of 1 to 4 bits stay in the order of the artifact, code k at bit k % 32 of word
k / 32, and the input comes as bits of the same order: `popc(w & x)` counts 32 products at once.

Sums. A weight code c stands for the level c - Z / 2, Z one less than the number of levels, and an input code d for the
level d + H / 2, H 1 for an even number of levels and 0 for an odd one. So with sums over a row's K entries

    sum (c - Z / 2) (d + H / 2) = (2 sum c d - Z sum d) / 2 + (2 H sum c - Z H K) / 4

where the second term belongs to the weight, and sum d comes with the input. For signed bytes Z is 256 less.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from questlm import ops
from questlm.grid import Grid

__all__ = ["MOST_PLANES", "Words", "input_half", "lay_out", "layout_bits", "plane_bytes", "twice_zero"]

MOST_PLANES = 4
"""Input codes of more bits than these are multiplied as bytes, also by one-bit weights."""

_ALIGNMENT = 16  # bytes: what a thread loads at once


class Words(NamedTuple):
    """A packed matrix in the order of the kernels.

    Attributes:
        low: int32 (rows, words): codes of 1, 2, 4 or 8 bits, the low two bits of 3-bit codes, or bits in order.
        high: int32 (rows, words), the high bit of 3-bit codes; None for other widths.
        sums: int32 (rows,), sums of each row's codes.
    """

    low: Tensor
    high: Tensor | None
    sums: Tensor


def layout_bits(weight: Grid, act: Grid | None, k: int) -> int:
    """Bits that a code of a weight takes here: 1, 2, 3, 4 or 8; or 0 for one-bit codes that stay in order.

    Args:
        act: grid of the inputs; None: they are not rounded, and then codes of 3 bits take 4.
    """
    bits = (weight.levels - 1).bit_length()
    if act is None:
        return 4 if bits == 3 else bits if bits <= 4 else 8
    counted = bits == 1 and act.levels <= 2**MOST_PLANES and act.levels % 2 == 0 and k % 32 == 0
    return 0 if counted else bits if bits <= 4 else 8


def twice_zero(levels: int, bits: int) -> int:
    """Z: twice the code that stands for 0, of a grid with `levels` levels whose codes take `bits` bits here."""
    return levels - 1 - (256 if bits == 8 else 0)


def input_half(act: Grid) -> int:
    """H: how many halves an input level lies above its signed code."""
    return 1 - act.levels % 2


def plane_bytes(k: int, bits: int) -> int:
    """P: bytes of a row of `k` codes of `bits` bits."""
    used = -(-k * bits // 8)
    return -(-used // _ALIGNMENT) * _ALIGNMENT


def lay_out(codes: Tensor, levels: int, k: int, bits: int) -> Words:
    """Words of stored rows.

    Args:
        codes: uint8 (rows, packed_width(k, levels)), as an artifact stores them.
        bits: what `layout_bits` gives.
    """
    plain = ops.unpack(codes, levels, k)
    if bits == 8:
        plain = plain ^ 128
        return Words(_planes(plain, 8), None, plain.view(torch.int8).sum(-1, dtype=torch.int32))
    sums = plain.sum(-1, dtype=torch.int32)
    if bits == 0:
        padded = torch.nn.functional.pad(codes, (0, plane_bytes(k, 1) - codes.shape[1]))
        return Words(padded.contiguous().view(torch.int32), None, sums)
    if bits == 3:
        return Words(_planes(plain & 3, 2), _planes(plain >> 2, 1), sums)
    return Words(_planes(plain, bits), None, sums)


def _planes(codes: Tensor, bits: int) -> Tensor:
    rows, k = codes.shape
    width, count = plane_bytes(k, bits), 8 // bits
    padded = torch.nn.functional.pad(codes, (0, count * width - k)).view(rows, count, width)
    packed = torch.zeros((rows, width), dtype=torch.uint8, device=codes.device)
    for plane in range(count):
        packed |= padded[:, plane] << (bits * plane)
    return packed.view(torch.int32)
