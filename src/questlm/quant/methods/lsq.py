"""LSQ: learned step sizes, one a tensor or one a row (arXiv 1902.08153)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from questlm.grid import Grid
from questlm.quant.grids import level_count
from questlm.quant.learned_step import LearnedStep
from questlm.quant.methods.base import ALL_BITS, Method, Request, learned, mean_magnitude

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["lsq", "lsq_grid", "lsq_row", "lsq_rule"]


def lsq_grid(request: Request) -> Grid:
    """Return the grid of the codes -2^(b-1) to 2^(b-1) - 1; -1, 0 and 1 for ternary; two levels around 0 for 1 bit."""
    levels = level_count(request.bits)
    return Grid(levels, None, scale="one", zero=None if levels < 4 else levels // 2)


def _lsq_row_act_grid(request: Request) -> Grid:
    grid = lsq_grid(request)
    return Grid(grid.levels, None, scale="rms", zero=grid.zero)


def lsq_rule(request: Request) -> LearnedStep:
    """Return how the step size starts and learns."""
    if request.bits == 1:
        return LearnedStep(ratio=2, lower=-0.5, upper=0.5, inside="level", start=mean_magnitude, balance=1)
    grid = lsq_grid(request)
    top = grid.largest
    return LearnedStep(
        ratio=1,
        lower=-grid.zero_point,
        upper=top,
        inside="residual",
        start=partial(_lsq_start, top=top),
        balance=top,
    )


def _lsq_start(x: Tensor, top: float) -> Tensor:
    return 2 * mean_magnitude(x) / top**0.5


_LSQ = """
Formula: s clip(round(x / s), -Qn, Qp) with Qn = 2^(b-1), Qp = 2^(b-1) - 1 (ternary: 1 and 1); 1 bit: s sign(x).
Gradient to x: 1 inside (-Qn, Qp) steps, else 0 (1 bit: where |x| < s). To s: round(x/s) - x/s inside, -Qn or Qp outside
(1 bit: sign(x)), times 1 / sqrt(m Qp), m the number of entries that share s (Qp = 1 at 1 bit).
Initialisation: s = 2 mean|x| / sqrt(Qp) of the first tensor seen; 1 bit: mean|x|.
"""

lsq = Method(
    summary="learned step size, one per tensor",
    source="arXiv 1902.08153",
    doc=_LSQ
    + """
Differs: m for activations counts the whole batch (the paper: the features of one sample); with Adam this changes
nothing but the share in the clipped norm. The step is |s|, so that it cannot turn negative.
""",
    weight=learned(lsq_grid, lsq_rule, "step, one per tensor", ALL_BITS),
    act=learned(lsq_grid, lsq_rule, "step, one per tensor", ALL_BITS),
)

lsq_row = Method(
    summary="learned step size, one per row of a weight and relative to each token's rms",
    source="arXiv 1902.08153, made like for like with methods that scale by rows",
    doc=_LSQ
    + """
Differs from `lsq`: each row of a weight has a step of its own; activations share one s in units of the token's rms,
which is a constant for the gradient, so that both factors are scaled by rows as QuEST's are.
""",
    weight=learned(lsq_grid, lsq_rule, "step, one per row", ALL_BITS, by_row=True),
    act=learned(_lsq_row_act_grid, lsq_rule, "step in units of the rms, one per tensor", ALL_BITS),
)
