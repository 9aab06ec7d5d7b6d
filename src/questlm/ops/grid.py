"""What codes mean: the uniform grid of one tensor, and the pair of grids of one linear layer. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MIN_BLOCK_SIZE", "Grid", "LinearFormat", "fit_block_size"]

MIN_BLOCK_SIZE = 16
"""Smallest Hadamard block chosen on a caller's behalf; below it, blocks are too short to make entries Gaussian."""

_DEFAULT_BLOCK_SIZE = 128


@dataclass(frozen=True)
class Grid:
    """A symmetric uniform grid of `levels` values, scaled row by row.

    Code c in 0 .. levels-1 stands for (c - zero_point) * step with step = step_per_rms * rms(row). An even number of
    levels gives the half-integer grid of QuEST (no zero); three levels give the ternary grid.
    """

    levels: int
    step_per_rms: float

    def __post_init__(self) -> None:
        if not (isinstance(self.levels, int) and 2 <= self.levels <= 256):
            raise ValueError(f"a grid has 2 to 256 levels, not {self.levels!r}")
        if not 0 < self.step_per_rms < float("inf"):
            raise ValueError(f"step_per_rms must be positive and finite, not {self.step_per_rms!r}")

    @property
    def zero_point(self) -> float:
        """The code, not always whole, that would stand for 0."""
        return (self.levels - 1) / 2


@dataclass(frozen=True)
class LinearFormat:
    """How one linear layer multiplies: block size of the Hadamard transform (1: none) and the grid of each factor.

    A grid of None leaves that factor in 16 or 32 bit; it is still rotated, because the other factor is.
    """

    block_size: int
    weight: Grid | None
    act: Grid | None


def fit_block_size(dimension: int, block_size: int = _DEFAULT_BLOCK_SIZE) -> int:
    """Return the Hadamard block size to use for rows of `dimension` entries.

    `block_size` itself where it divides the dimension. Where the default of 128 does not, the largest power of two
    that does, at least 16; a block size other than the default is an explicit request and is never replaced.

    Raises:
        ValueError: `block_size` is not a power of two, or no allowed block divides `dimension`.
    """
    if block_size < 1 or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two, not {block_size}")
    if dimension > 0 and dimension % block_size == 0:
        return block_size
    largest = dimension & -dimension if dimension > 0 else 0
    if block_size == _DEFAULT_BLOCK_SIZE and largest >= MIN_BLOCK_SIZE:
        return largest
    if largest >= MIN_BLOCK_SIZE:
        raise ValueError(f"block_size {block_size} does not divide the dimension {dimension}; use {largest} or less")
    raise ValueError(
        f"no Hadamard block of at least {MIN_BLOCK_SIZE} divides the dimension {dimension}; "
        f"use a multiple of {MIN_BLOCK_SIZE}, or leave this layer out with filter_fn"
    )
