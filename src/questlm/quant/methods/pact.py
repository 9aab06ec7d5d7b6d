"""PACT: a learned clip (arXiv 1805.06085)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from questlm.grid import Grid
from questlm.quant.grids import gaussian_scale, level_count
from questlm.quant.learned_step import LearnedStep
from questlm.quant.methods.base import ALL_BITS, Method, Request, learned

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pact"]


def _rms(x: Tensor, times: float) -> Tensor:
    return times * x.square().mean(-1).sqrt()


def _pact_grid(request: Request) -> Grid:
    return Grid(level_count(request.bits), None, scale="one")


def _pact_rule(request: Request) -> LearnedStep:
    top = _pact_grid(request).largest
    optimum = gaussian_scale(request.bits)
    return LearnedStep(
        ratio=1 / top,
        lower=-top,
        upper=top,
        inside="nothing",
        start=partial(_rms, times=optimum),
    )


pact = Method(
    summary="learned clip, one per tensor",
    source="arXiv 1805.06085",
    doc="""
Formula: x clipped to [-alpha, alpha], then the nearest of 2^b evenly spaced levels from -alpha to alpha.
Gradient to x: 1 where |x| < alpha, else 0. To alpha: sign(x) where |x| >= alpha, else 0.
Initialisation: alpha = a* rms of the first tensor seen, the MSE-optimal clip of a Gaussian.
Regularisation: the paper's L2 penalty on alpha is AdamW's decoupled decay, train.quantizer_weight_decay; 0 by default.
Differs: symmetric, since inputs are signed; weights are quantised in the same way (the paper uses DoReFa's rule).
""",
    weight=learned(_pact_grid, _pact_rule, "clip, one per tensor", ALL_BITS),
    act=learned(_pact_grid, _pact_rule, "clip, one per tensor", ALL_BITS),
)
