"""Sizes of tiles, and the matrix that rotates them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FUSED", "Launch", "Tiles", "fits", "matrix", "tiles_of"]

FUSED = {"enable_fp_fusion": True}
"""a * b + c rounds once: said, because Triton's default for it changes, and it warns of that."""

_WIDEST = 128
_MOST_PIECES = 256


class Tiles(NamedTuple):
    """How rows are cut: NB pieces of T entries a row, R rows a tile, P >= R NB pieces a tile (a power of two)."""

    NB: int
    R: int
    P: int
    T: int


def fits(k: int, block_size: int) -> bool:
    """Whether the kernels take rows of `k` entries rotated by blocks of `block_size`."""
    width = _width(k, block_size)
    return width >= max(16, block_size) and k // width <= _MOST_PIECES


@cache
def tiles_of(k: int, block_size: int, entries: int = 8192) -> Tiles:
    """Return tiles of whole rows of `k` entries: about `entries` of them a tile, or one row if that is longer."""
    width = _width(k, block_size)
    pieces = k // width
    size = max(16, min(entries // width, _MOST_PIECES // 2), 1 << (pieces - 1).bit_length())
    return Tiles(pieces, size // pieces, size, width)


def _width(k: int, block_size: int) -> int:
    """Entries a piece: the largest power of two that divides `k`, up to 128 or a larger block; 0 for still larger."""
    return min(k & -k, max(_WIDEST, block_size)) if block_size <= 2 * _WIDEST else 0


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class Launch(NamedTuple):
    """How a kernel is started; measured on an H100.

    Attributes:
        entries: of a tile, where that is enough for a row.
        programs: at most so many a multiprocessor; each takes several tiles, so that it loads the matrix once.
        num_warps: a program, for such a tile; larger ones take more.
        num_stages: of the software pipeline.
    """

    entries: int
    programs: int
    num_warps: int
    num_stages: int

    def tiles(self, k: int, block_size: int) -> Tiles:
        """Tiles for rows of `k` entries."""
        return tiles_of(k, block_size, self.entries)

    def options(self, tiles: Tiles) -> dict[str, int]:
        """Options of Triton."""
        warps = self.num_warps * max(1, tiles.P * tiles.T // self.entries)
        return {"num_warps": min(warps, 16), "num_stages": self.num_stages, **FUSED}

    def grid(self, rows: int, tiles: Tiles, device: torch.device) -> tuple[int]:
        """Programs to start."""
        most = _processors(device) * self.programs if device.type == "cuda" else 2
        return (min(-(-rows // tiles.R), most),)


@cache
def matrix(width: int, block_size: int, device: torch.device) -> Tensor:
    """(width, width) bfloat16: blocks of the Hadamard matrix, of +-1, along the diagonal. Exact, unlike 1 / sqrt."""
    numbers = torch.arange(width)
    shared = (numbers.unsqueeze(1) & numbers) % block_size
    for shift in (16, 8, 4, 2, 1):
        shared = shared ^ (shared >> shift)
    signs = 1 - 2 * (shared & 1)
    same_block = numbers.unsqueeze(1) // block_size == numbers // block_size
    with torch.inference_mode(False):  # an inference tensor could not be used for training later
        return (signs * same_block).to(torch.bfloat16).to(device)
