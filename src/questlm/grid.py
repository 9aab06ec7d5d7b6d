"""What codes mean: the grid of one tensor, and what a packed layer holds. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "MIN_BLOCK_SIZE",
    "TERNARY_PER_BYTE",
    "Factor",
    "Grid",
    "LayerFormat",
    "Narrow",
    "Scale",
    "Steps",
    "fit_block_size",
    "packed_width",
]

MIN_BLOCK_SIZE = 16
"""Smallest Hadamard block chosen on a caller's behalf; below it, blocks are too short to make entries Gaussian."""

_DEFAULT_BLOCK_SIZE = 128

TERNARY_PER_BYTE = 5
"""Ternary digits in a byte: 3^5 = 243 of its 256 values."""

Scale = Literal["rms", "absmax", "absmean", "one"]
"""What a row's step is a multiple of: its rms, its largest magnitude, the mean magnitude of the whole tensor, or 1."""


Steps = Literal["fp32", "fp16", "fp8"]
"""Numbers that the steps of a weight's rows are kept in. fp8 is E4M3 of 256 times the step."""


@dataclass(frozen=True)
class Grid:
    """The levels that rows of a tensor are rounded to.

    Code c in 0 .. levels - 1 stands for value(c) * step, where value(c) = c - zero_point, or table[c] on a grid whose
    levels are not evenly spaced. An even number of levels gives by default the half-integer grid of QuEST (no zero).

    Attributes:
        levels: how many, 2 to 256.
        step_per_scale: step of a row = step_per_scale * scale(row); None where it is learned and comes with the tensor.
        scale: what a row's step is a multiple of.
        zero: the code, not always whole, that would stand for 0; None: the middle, (levels - 1) / 2.
        table: the levels in steps, ascending; None: evenly spaced, one step apart.
        group: 0 for a dense grid. Otherwise 2 of each 4 neighbouring groups of so many entries are kept, those of
            largest norm, and the code `levels` stands for the zero of an entry that is not.
    """

    levels: int
    step_per_scale: float | None
    scale: Scale = "rms"
    zero: float | None = None
    table: tuple[float, ...] | None = None
    group: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.levels, int) and 2 <= self.levels <= 256):
            raise ValueError(f"a grid has 2 to 256 levels, not {self.levels!r}")
        if self.step_per_scale is not None and not 0 < self.step_per_scale < float("inf"):
            raise ValueError(f"step_per_scale must be positive and finite, not {self.step_per_scale!r}")
        if self.table is not None and (len(self.table) != self.levels or list(self.table) != sorted(self.table)):
            raise ValueError(f"the table must give {self.levels} levels in ascending order")

    @property
    def zero_point(self) -> float:
        """The code, not always whole, that would stand for 0 on an evenly spaced grid."""
        return (self.levels - 1) / 2 if self.zero is None else self.zero

    @property
    def plain(self) -> bool:
        """Evenly spaced around 0, dense, with a step in proportion to the row's rms: what kernels are made for."""
        uniform = self.table is None and self.zero is None and not self.group
        return uniform and self.scale == "rms" and self.step_per_scale is not None

    @property
    def largest(self) -> float:
        """The highest level, in steps."""
        return self.table[-1] if self.table else self.levels - 1 - self.zero_point


@dataclass(frozen=True)
class Factor:
    """What a quantiser gives for one factor of a product, before there are any values to quantise.

    Attributes:
        grid: of the codes; None: values instead of codes.
        offset: whether rows of a weight, or the activations as a whole, have an offset beside their step.
        values_format: how values are stored, where there is no grid.
        steps: numbers that the steps of a weight's rows are kept in.
    """

    grid: Grid | None
    offset: bool = False
    values_format: Literal["bf16-2:4"] | None = None
    steps: Steps = "fp32"


@dataclass(frozen=True)
class Narrow:
    """The last `width` rows or columns of a matrix, which have a grid of their own."""

    axis: Literal["rows", "columns"]
    width: int
    grid: Grid


@dataclass(frozen=True)
class LayerFormat:
    """What a packed quantised layer holds, known from its settings: what `quest pack` writes and a plan counts.

    Attributes:
        block_size: of the Hadamard transform; 1: none.
        weight, act: the two factors; None for one that is not quantised, which for a weight is stored as float32.
        input_norm: epsilon of the RMSNorm before the layer; None: no norm.
        narrow: the part of the weight with a grid of its own, beside `weight`; None: there is none.
    """

    block_size: int
    weight: Factor | None
    act: Factor | None
    input_norm: float | None = None
    narrow: Narrow | None = None


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
        f"use a multiple of {MIN_BLOCK_SIZE}, or a block_size of 1, which is no transform"
    )


def packed_width(length: int, levels: int) -> int:
    """Bytes that a row of `length` codes of a grid with `levels` levels takes."""
    if levels == 3:
        return -(-length // TERNARY_PER_BYTE)
    return -(-length * (levels - 1).bit_length() // 8)
