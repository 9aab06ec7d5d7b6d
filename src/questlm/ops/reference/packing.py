"""Codes as bits. Little-endian throughout: the first code takes the lowest bits of the first byte.

A row of n codes of b bits fills ceil(n b / 8) bytes; rows start on byte boundaries and spare bits are zero. Eight codes
fill b whole bytes, or fewer codes fewer bytes: such groups are packed and unpacked alike. Ternary codes go five to a
byte, base 3, first code lowest: 3^5 = 243 <= 256, that is 1.6 bits a code where the information-theoretic least is
1.585.
`questlm.grid.packed_width` counts the bytes of a row, without torch.

Of 2:4 sparse rows only the kept half is stored, and one bit for each group of entries that says whether it is kept.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from questlm.grid import TERNARY_PER_BYTE

__all__ = ["kept_half", "pack", "pack_ternary", "spread_kept", "unpack", "unpack_ternary"]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of `bits` bits each: (..., n) uint8 -> (..., ceil(n * bits / 8)) uint8."""
    if bits == 8:
        return codes
    # As in `unpack`: all first codes of a group at once, and so on.
    count, width = 8 // gcd(bits, 8), bits // gcd(bits, 8)
    length = codes.shape[-1]
    groups = -(-length // count)
    codes = torch.nn.functional.pad(codes, (0, groups * count - length))
    result = codes.new_zeros((*codes.shape[:-1], groups * width))
    for index in range(count):
        byte, shift = divmod(index * bits, 8)
        code = codes[..., index::count]
        result[..., byte::width] |= code << shift
        if shift + bits > 8:  # it ends in the next byte
            result[..., byte + 1 :: width] |= code >> (8 - shift)
    return result[..., : -(-length * bits // 8)].contiguous()


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """Inverse of `pack`: (..., ceil(length * bits / 8)) uint8 -> (..., length) uint8."""
    if bits == 8:
        return packed
    # Codes and bytes fall into step every `codes` codes, which take `width` bytes: all first codes at once, and so on.
    codes, width = 8 // gcd(bits, 8), bits // gcd(bits, 8)
    groups = -(-length // codes)
    packed = torch.nn.functional.pad(packed, (0, groups * width - packed.shape[-1]))
    result = packed.new_empty((*packed.shape[:-1], groups * codes))
    for index in range(codes):
        byte, shift = divmod(index * bits, 8)
        code = packed[..., byte::width] >> shift
        if shift + bits > 8:  # it ends in the next byte
            code = code | (packed[..., byte + 1 :: width] << (8 - shift))
        result[..., index::codes] = code & (2**bits - 1)
    return result[..., :length]


def pack_ternary(codes: Tensor) -> Tensor:
    """Pack codes 0, 1, 2: (..., n) uint8 -> (..., ceil(n / 5)) uint8."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % TERNARY_PER_BYTE))
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=codes.device)
    return (padded.unflatten(-1, (-1, TERNARY_PER_BYTE)) * powers).sum(-1, dtype=torch.uint8)


def unpack_ternary(packed: Tensor, length: int) -> Tensor:
    """Inverse of `pack_ternary`: (..., ceil(length / 5)) uint8 -> (..., length) uint8."""
    result = packed.new_empty((*packed.shape[:-1], packed.shape[-1] * TERNARY_PER_BYTE))
    for index in range(TERNARY_PER_BYTE):
        higher = packed // 3
        result[..., index::TERNARY_PER_BYTE] = packed - 3 * higher
        packed = higher
    return result[..., :length]


def kept_half(rows: Tensor, kept: Tensor) -> Tensor:
    """Return the kept entries (rows, K / 2) of 2:4 sparse rows (rows, K), in order; `kept` is bool (rows, K)."""
    return rows[kept].view(rows.shape[0], rows.shape[-1] // 2)


def spread_kept(half: Tensor, kept: Tensor, fill: int) -> Tensor:
    """Inverse of `kept_half`, with `fill` where nothing was kept."""
    rows = torch.full(kept.shape, fill, dtype=half.dtype, device=half.device)
    return rows.masked_scatter(kept, half)
