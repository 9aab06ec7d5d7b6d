"""MSE-optimal uniform grids for Gaussian rows.

After the Hadamard transform a row of weights or activations is close to Gaussian, so one grid, optimal for N(0, 1) and
scaled by the row's rms, serves every row. For n levels l_i = a u_i spaced evenly on [-a, a], with cells bounded by the
midpoints t_i = a v_i, the error to be minimised over the clip a is

    E(a) = sum_i  integral over [t_i, t_{i+1}]  (z - l_i)^2 phi(z) dz.

The derivative of E with respect to each midpoint vanishes (both neighbours are equally far there), which leaves

    E'(a) = -2 sum_i u_i ( integral of z phi  -  a u_i * integral of phi ),
          = -2 sum_i u_i ( phi(t_i) - phi(t_{i+1})  -  a u_i (Phi(t_{i+1}) - Phi(t_i)) ),

a closed form in the error function, monotone around its single root. We bisect it to the last bit. `method.md` and the
paper (arXiv 2502.05003, section 3) list the results to compare with; no constant is typed in here.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

from questlm.errors import ConfigError
from questlm.ops.grid import Grid

__all__ = ["gaussian_grid", "gaussian_mse", "gaussian_scale", "level_count"]


def level_count(bits: int | float | str) -> int:
    """Levels of a grid: 2^bits for 1 to 8 bits, 3 for 'ternary' (log2(3) = 1.585 bits).

    Raises:
        ConfigError: any other value.
    """
    if bits == "ternary" or (isinstance(bits, float) and abs(bits - math.log2(3)) < 0.01):
        return 3
    if isinstance(bits, bool) or bits not in range(1, 9):
        raise ConfigError(f"bits = {bits!r} cannot be quantised to; allowed are 1 to 8 and 'ternary'")
    return int(2 ** int(bits))


def gaussian_scale(bits: int | float | str) -> float:
    """a*: the clip, in units of the rms, that minimises the error of a `bits`-bit uniform grid on N(0, 1).

    Args:
        bits: 1 to 8, or 'ternary'.

    Raises:
        ConfigError: any other value of `bits`.
    """
    return _optimal_clip(level_count(bits))


def gaussian_mse(bits: int | float | str, clip: float | None = None) -> float:
    """E[(z - Q(z))^2] for z ~ N(0, 1) on the grid of `bits` bits and clip `clip` (None: the optimal one)."""
    levels = level_count(bits)
    scale = _optimal_clip(levels) if clip is None else clip
    total = 0.0
    for unit, low, high in _cells(levels):
        level, a, b = scale * unit, scale * low, scale * high
        mass, first = _mass(a, b), _density(a) - _density(b)
        second = mass + _edge(a) - _edge(b)
        total += second - 2 * level * first + level * level * mass
    return total


def gaussian_grid(bits: int | float | str) -> Grid:
    """The MSE-optimal uniform grid of `bits` bits for rows whose entries are Gaussian."""
    levels = level_count(bits)
    return Grid(levels, 2 * _optimal_clip(levels) / (levels - 1))


@cache
def _optimal_clip(levels: int) -> float:
    low, high = 0.5, 8.0
    while (middle := (low + high) / 2) not in (low, high):
        if _slope(levels, middle) < 0:
            low = middle
        else:
            high = middle
    return middle


def _slope(levels: int, clip: float) -> float:
    """E'(clip) / 2."""
    terms = []
    for unit, low, high in _cells(levels):
        a, b = clip * low, clip * high
        terms.append(-unit * (_density(a) - _density(b) - clip * unit * _mass(a, b)))
    return math.fsum(terms)


def _cells(levels: int) -> list[tuple[float, float, float]]:
    """(level, lower edge, upper edge) of each cell for a clip of 1."""
    units = [2 * i / (levels - 1) - 1 for i in range(levels)]
    edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(units)), math.inf]
    return [(unit, *edge) for unit, edge in zip(units, pairwise(edges), strict=True)]


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _edge(z: float) -> float:
    return 0.0 if math.isinf(z) else z * _density(z)


def _mass(low: float, high: float) -> float:
    """Phi(high) - Phi(low), by erfc on the side where it loses no digits."""
    if low > 0:
        return (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2
    return (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2))) / 2
