"""Packed matrices as integers times a step of each row, which other programs' formats are made of."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from questlm.artifact.matrices import matrix_tensors, weight_operand
from questlm.artifact.read import Artifact
from questlm.artifact.shapes import matrix_shapes
from questlm.grid import Grid
from questlm.ops.reference.matmul import factor

__all__ = ["IntegerRows", "integer_rows"]


class IntegerRows(NamedTuple):
    """A matrix whose entries are `values * step`, exactly; of a rotated layer in the Hadamard domain.

    Attributes:
        values: int16 (out, in).
        step: float32 (out, 1).
        low, high: the least and the largest integer that its grid has, whether it is used or not.
        stride: all integers of the grid are `low` and multiples of it above.
    """

    values: Tensor
    step: Tensor
    low: int
    high: int
    stride: int = 1


def integer_rows(artifact: Artifact, name: str) -> IntegerRows | None:
    """The matrix `name` as integers; None where it is not made of integers and one step for each row.

    Half-integer levels, as those of QuEST, become odd integers of half the step.
    """
    weight_format = artifact.config.weight_format(name)
    tensors = matrix_tensors(artifact.tensors, name)
    if weight_format.weight == "int8":
        return IntegerRows(tensors["codes"].to(torch.int16), tensors["scale"], -127, 127)
    grid = weight_format.grids[0]
    if grid is None or weight_format.weight_offset or weight_format.narrow is not None:
        return None
    times = _multiplier(grid)
    if times is None:
        return None
    columns = matrix_shapes(artifact.config.model)[name][1]
    operand = weight_operand(tensors, weight_format, columns)
    assert operand.step is not None
    values = (factor(operand.data, grid, torch.float32) * times).to(torch.int16)
    integers = [round(level * times) for level in _levels(grid)]
    stride = gcd(*(each - integers[0] for each in integers))
    return IntegerRows(values, operand.step / times, integers[0], integers[-1], stride)


def _levels(grid: Grid) -> list[float]:
    """All levels in steps, ascending; of a sparse grid also the 0 of entries that are dropped."""
    levels = list(grid.table) if grid.table else [code - grid.zero_point for code in range(grid.levels)]
    return sorted((*levels, 0.0)) if grid.group else levels


def _multiplier(grid: Grid) -> int | None:
    """The least number that makes all levels of a grid integers, 1 or 2; None where neither does."""
    return next((times for times in (1, 2) if all((level * times).is_integer() for level in _levels(grid))), None)
