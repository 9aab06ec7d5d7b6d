"""MSE-optimal grids for Gaussian rows.

After the Hadamard transform a row of weights or activations is close to Gaussian, so one grid, optimal for N(0, 1) and
scaled by the row's rms, serves every row. For levels l_i = a u_i of a fixed shape u, with cells bounded by the
midpoints t_i = a v_i, the error to be minimised over the scale a is

    E(a) = sum_i  integral over [t_i, t_{i+1}]  (z - l_i)^2 phi(z) dz.

The derivative of E with respect to each midpoint vanishes (both neighbours are equally far there), which leaves

    E'(a) = -2 sum_i u_i ( integral of z phi  -  a u_i * integral of phi ),
          = -2 sum_i u_i ( phi(t_i) - phi(t_{i+1})  -  a u_i (Phi(t_{i+1}) - Phi(t_i)) ),

a closed form in the error function with a single root, which we bisect to the last bit. Evenly spaced shapes give the
integer grids of QuEST (arXiv 2502.05003, section 3), the shape 0, 1/2, 1, 3/2, 2, 3, 4, 6 and its mirror image FP4
(E2M1).

Where the shape is free too, the optimum is Lloyd's and Max's: each level is the mean of its cell,

    l_i = (phi(t_i) - phi(t_{i+1})) / (Phi(t_{i+1}) - Phi(t_i)),

which we iterate to a fixed point. `method.md` and the paper list results to compare with; no constant is typed in here.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

from questlm.config.quant import Bits
from questlm.errors import ConfigError, quoted
from questlm.grid import Grid

__all__ = [
    "fp4_grid",
    "gaussian_grid",
    "gaussian_mse",
    "gaussian_scale",
    "grid_mse",
    "level_count",
    "lloydmax_grid",
    "stored_grid",
]

_FP4_HALF = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4_SHAPE = (*(-level for level in reversed(_FP4_HALF)), 0.0, *_FP4_HALF)


def level_count(bits: Bits | float) -> int:
    """Return the number of levels of a grid: 2^bits for 1 to 8 bits, 3 for 'ternary' (log2(3) = 1.585 bits).

    Raises:
        ConfigError: any other value.
    """
    if bits == "ternary" or (isinstance(bits, float) and abs(bits - math.log2(3)) < 0.01):
        return 3
    if isinstance(bits, bool) or bits not in range(1, 9):
        raise ConfigError(f"bits = {quoted(bits)} cannot be quantised to; allowed are 1 to 8 and 'ternary'")
    return int(2 ** int(bits))


def gaussian_scale(bits: Bits | float) -> float:
    """Return a*, the clip in units of the rms that minimises the squared error of a uniform grid on N(0, 1).

    Args:
        bits: 1 to 8, or 'ternary'.

    Raises:
        ConfigError: any other value of `bits`.
    """
    return _optimal_scale(_even(level_count(bits)))


def gaussian_mse(bits: Bits | float, clip: float | None = None) -> float:
    """Return E[(z - Q(z))^2] for z ~ N(0, 1) on the uniform grid of `bits` bits; `clip` None: the optimal clip."""
    scale = gaussian_scale(bits) if clip is None else clip
    return _mse([scale * unit for unit in _even(level_count(bits))])


def gaussian_grid(bits: Bits | float) -> Grid:
    """Return the MSE-optimal uniform grid of `bits` bits (1 to 8 or 'ternary') for rows whose entries are Gaussian."""
    levels = level_count(bits)
    return Grid(levels, 2 * _optimal_scale(_even(levels)) / (levels - 1))


def fp4_grid() -> Grid:
    """Return the FP4 grid (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives), scaled for least error on Gaussian rows."""
    return Grid(len(_FP4_SHAPE), _optimal_scale(_FP4_SHAPE), table=_FP4_SHAPE)


def lloydmax_grid(bits: Bits | float) -> Grid:
    """Return the 2^bits levels, unevenly spaced, that minimise the error on N(0, 1) (Lloyd 1982, Max 1960)."""
    table = _lloyd_max(level_count(bits))
    return Grid(len(table), 1.0, table=table)


def stored_grid(stored_dtype: str) -> Grid | None:
    """Return the grid of a stored dtype 'int2' to 'int7': the Gaussian grid of so many bits; None for any other."""
    bits = stored_dtype.removeprefix("int")
    return gaussian_grid(int(bits)) if bits in tuple("234567") else None


def grid_mse(format: str, bits: Bits | float = 4) -> float:
    """Return E[(z - Q(z))^2] for z ~ N(0, 1) on the grid of a dense format: 'int', 'ternary', 'fp4' or 'lloydmax'.

    Raises:
        ConfigError: another format, or bits that it does not have.
    """
    if format in ("int", "ternary"):
        return gaussian_mse("ternary" if format == "ternary" else bits)
    if format not in ("fp4", "lloydmax"):
        raise ConfigError(f"no dense format {quoted(format)}; there are int, ternary, fp4 and lloydmax")
    grid = fp4_grid() if format == "fp4" else lloydmax_grid(bits)
    return _mse([level * (grid.step_per_scale or 0) for level in grid.table or ()])


def _even(levels: int) -> tuple[float, ...]:
    """Evenly spaced levels from -1 to 1."""
    return tuple(2 * i / (levels - 1) - 1 for i in range(levels))


@cache
def _optimal_scale(shape: tuple[float, ...]) -> float:
    low, high = 0.5 / shape[-1], 8.0 / shape[-1]
    while (middle := (low + high) / 2) not in (low, high):
        if _slope(shape, middle) < 0:
            low = middle
        else:
            high = middle
    return middle


@cache
def _lloyd_max(count: int) -> tuple[float, ...]:
    levels = [_optimal_scale(_even(count)) * unit for unit in _even(count)]
    change = 1.0
    while change > 1e-15:
        cells = [(_density(a) - _density(b)) / _mass(a, b) for _, a, b in _cells(levels)]
        means = [(mean - mirrored) / 2 for mean, mirrored in zip(cells, reversed(cells), strict=True)]
        change = max(abs(a - b) for a, b in zip(means, levels, strict=True))
        levels = means
    return tuple(levels)


def _slope(shape: tuple[float, ...], scale: float) -> float:
    """E'(scale) / 2."""
    terms = []
    for unit, low, high in _cells(list(shape)):
        a, b = scale * low, scale * high
        terms.append(-unit * (_density(a) - _density(b) - scale * unit * _mass(a, b)))
    return math.fsum(terms)


def _mse(levels: list[float]) -> float:
    terms = []
    for level, a, b in _cells(levels):
        mass, first = _mass(a, b), _density(a) - _density(b)
        second = mass + _edge(a) - _edge(b)
        terms.append(second - 2 * level * first + level * level * mass)
    return math.fsum(terms)


def _cells(levels: list[float]) -> list[tuple[float, float, float]]:
    """(level, lower edge, upper edge) of each cell."""
    edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
    return [(level, *edge) for level, edge in zip(levels, pairwise(edges), strict=True)]


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _edge(z: float) -> float:
    return 0.0 if math.isinf(z) else z * _density(z)


def _mass(low: float, high: float) -> float:
    """Phi(high) - Phi(low), by erfc on the side where it loses no digits."""
    if low > 0:
        return (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2
    return (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2))) / 2
