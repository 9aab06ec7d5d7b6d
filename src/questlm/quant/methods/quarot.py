"""QuaRot's transform and grid as a training method (arXiv 2404.00456)."""

from __future__ import annotations

from questlm.grid import Grid
from questlm.quant.estimators import identity
from questlm.quant.grids import level_count
from questlm.quant.methods.base import Method, Request, dynamic

__all__ = ["quarot"]


def _absmax_grid(request: Request) -> Grid:
    levels = level_count(request.bits)
    return Grid(levels, 2 / (levels - 1), scale="absmax")


quarot = Method(
    summary="Hadamard transform, round to nearest up to the row's largest magnitude",
    source="arXiv 2404.00456 as a training method",
    doc="""
Formula: x_h = HT(x); 2^b evenly spaced levels from -max|x_h| to max|x_h| of the row, nearest level.
Initialisation: none. Gradient to x_h: 1 everywhere.
Differs: QuaRot quantises after training and rotates by one large random matrix; here the transform is QuEST's, and the
levels are half-integer so that 1 bit exists, as in the comparison of arXiv 2502.05003.
""",
    weight=dynamic(_absmax_grid, identity),
    act=dynamic(_absmax_grid, identity),
    rotates=True,
)
