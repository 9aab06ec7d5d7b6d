"""Gradient estimators: through which entries of a rounded tensor the gradient passes.

Rounding has no useful derivative. The trust estimator (arXiv 2502.05003, section 3.3) passes the gradient of an entry
unchanged where the quantisation error is one that rounding could make, |x_q - x_h| <= T rms with T half of the largest
interval between levels, and drops it elsewhere: there the entry was clipped, and its gradient with respect to the
unclipped value is not to be trusted. The places where that begins are T beyond the outermost levels,

    |x_h| <= (largest level) + T,    on a uniform grid of n levels (n - 1)/2 steps + 1/2 step = n/2 steps.

One bit is the exception: its two levels stand so far inside the distribution that this rule drops entries that still
learn. The published runs pass |x_h| <= s a* rms with s = 1.30 after the Hadamard transform and 1.25 without it
(s = 2 would be the rule above), where a* rms is the outermost level. The outer trust factor s can be set for any grid.

Each function below maps (grid, whether rows are rotated, s or None) to the bound of the mask in steps: gradients pass
where |x_h| <= bound * step. None lets every gradient pass. `questlm.ops.quantize` computes the mask from the bound,
while it rounds, and `questlm.ops.masked_hadamard` applies it to a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from questlm.grid import Grid

__all__ = ["Estimator", "clip", "identity", "trust_bound"]

Estimator = Callable[[Grid, bool, float | None], float | None]

_ONE_BIT_TRUST = {True: 1.30, False: 1.25}


def trust_bound(grid: Grid, rotates: bool, outer: float | None = None) -> float:
    """Return the bound of QuEST's trust estimator.

    `outer` is the factor s on the outermost level, None the published one.
    """
    if outer is not None:
        return outer * grid.largest
    if grid.levels == 2:
        return _ONE_BIT_TRUST[rotates] * grid.largest
    return grid.largest + _largest_interval(grid) / 2


def clip(grid: Grid, rotates: bool, outer: float | None) -> float:
    """Return the outermost level: gradients pass inside the clipping range."""
    return grid.largest


def identity(grid: Grid, rotates: bool, outer: float | None) -> None:
    """Return None: every gradient passes, the straight-through estimator (arXiv 1308.3432)."""


def _largest_interval(grid: Grid) -> float:
    return max(b - a for a, b in pairwise(grid.table)) if grid.table else 1.0
