"""ParetoQ's stretched elastic quantiser (arXiv 2502.02631)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questlm.grid import Grid
from questlm.quant.grids import level_count
from questlm.quant.learned_step import LearnedStep
from questlm.quant.methods.base import Method, Request, learned, mean_magnitude

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["seq"]


def _amax(x: Tensor) -> Tensor:
    return x.abs().amax(-1)


def _seq_grid(request: Request) -> Grid:
    return Grid(level_count(request.bits), None, scale="one")


def _seq_act_grid(request: Request) -> Grid:
    return Grid(level_count(request.bits), None, scale="rms")


def _seq_rule(request: Request) -> LearnedStep:
    levels = level_count(request.bits)
    edge = 0.99 * levels / 2
    if levels == 2:
        return LearnedStep(ratio=2, lower=-edge / 2, upper=edge / 2, inside="level", start=mean_magnitude, balance=1)
    top = (levels - 1) / levels  # the outermost level in units of alpha
    return LearnedStep(ratio=2 / levels, lower=-edge, upper=edge, inside="residual", start=_amax, balance=top)


seq = Method(
    summary="ParetoQ's stretched elastic quantiser: balanced levels, learned scale per row",
    source="arXiv 2502.02631",
    doc="""
Formula: k balanced levels in [-alpha, alpha]: 2 bits +-alpha/4 and +-3 alpha/4, ternary 0 and +-2 alpha/3; step
2 alpha / k. 1 bit: alpha sign(x). alpha is learned, one per row of a weight.
Gradient to x: 1 where |x| < 0.99 alpha, else 0. To alpha: derivative through the rounding inside, the outermost level
in units of alpha outside (1 bit: sign(x)), times 1 / sqrt(m Q), m the row's length and Q that outermost level.
Initialisation: alpha = max|row| of the first tensor seen; 1 bit: mean|row|.
Differs: activations, which the paper leaves in 16 bits or quantises by another method, share one alpha in units of the
token's rms. From 3 bits on ParetoQ uses LSQ: see `lsq-row`.
""",
    weight=learned(_seq_grid, _seq_rule, "scale, one per row", (2, 1, "ternary"), by_row=True),
    act=learned(_seq_act_grid, _seq_rule, "scale in units of the rms, one per tensor", (2, 1, "ternary")),
)
