"""Methods that learn step sizes, clips, centres or offsets beside the weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from questlm.ops import Grid
from questlm.quant.adabin import AdaBinActivation, AdaBinWeight
from questlm.quant.grids import gaussian_scale, level_count
from questlm.quant.learned import LearnedStep
from questlm.quant.methods.base import ALL_BITS, Method, Recipe, Request, learned

__all__ = ["adabin", "lsq", "lsq_plus", "lsq_row", "pact", "seq"]

_SHRINKS = [step / 100 for step in range(2, 101, 2)]  # of the range that LSQ+ starts from


def _mean(x: Tensor) -> Tensor:
    return x.abs().mean(-1)


def _rms(x: Tensor, times: float) -> Tensor:
    return times * x.square().mean(-1).sqrt()


def _amax(x: Tensor) -> Tensor:
    return x.abs().amax(-1)


# -- LSQ --------------------------------------------------------------------------------------------------------------


def _lsq_grid(request: Request) -> Grid:
    levels = level_count(request.bits)
    return Grid(levels, None, scale="one", zero=None if levels < 4 else levels // 2)


def _lsq_row_act_grid(request: Request) -> Grid:
    grid = _lsq_grid(request)
    return Grid(grid.levels, None, scale="rms", zero=grid.zero)


def _lsq_rule(request: Request) -> LearnedStep:
    if request.bits == 1:
        return LearnedStep(ratio=2, lower=-0.5, upper=0.5, inside="level", start=_mean, balance=1)
    grid = _lsq_grid(request)
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
    return 2 * _mean(x) / top**0.5


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
    weight=learned(_lsq_grid, _lsq_rule, "step, one per tensor", ALL_BITS),
    act=learned(_lsq_grid, _lsq_rule, "step, one per tensor", ALL_BITS),
)

lsq_row = Method(
    summary="learned step size, one per row of a weight and relative to each token's rms",
    source="arXiv 1902.08153, made like for like with methods that scale by rows",
    doc=_LSQ
    + """
Differs from `lsq`: each row of a weight has a step of its own; activations share one s in units of the token's rms,
which is a constant for the gradient, so that both factors are scaled by rows as QuEST's are.
""",
    weight=learned(_lsq_grid, _lsq_rule, "step, one per row", ALL_BITS, by_row=True),
    act=learned(_lsq_row_act_grid, _lsq_rule, "step in units of the rms, one per tensor", ALL_BITS),
)


def _lsq_plus_grid(request: Request) -> Grid:
    levels = level_count(request.bits)
    return Grid(levels, None, scale="one", zero=levels // 2)


def _lsq_plus_rule(request: Request) -> LearnedStep:
    grid = _lsq_plus_grid(request)
    top, start = grid.largest, partial(_best_range, grid=grid)
    return LearnedStep(1, -grid.zero_point, top, "residual", _mean, balance=max(top, 1), offset=start)


def _best_range(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(step, offset) of the smallest squared error among shrunken ranges from min to max."""
    low, high = x.min(), x.max()
    middle, width = (low + high) / 2, high - low
    if not bool(width > 0):
        return width, middle
    candidates = []
    for shrink in _SHRINKS:
        step = width * shrink / (grid.levels - 1)
        shift = middle - width * shrink / 2 + grid.zero_point * step
        code = ((x - shift) / step).round().clamp(-grid.zero_point, grid.largest)
        candidates.append(((code * step + shift - x).square().mean(), step, shift))
    errors = torch.stack([error for error, _, _ in candidates])
    _, step, shift = candidates[int(errors.argmin())]
    return step, shift


lsq_plus = Method(
    summary="LSQ with a learned offset for activations",
    source="arXiv 2004.09576",
    doc="""
Activations: s clip(round((x - o) / s), -Qn, Qp) + o with learned s and o, one each per tensor. Weights: as `lsq`.
Gradient to x and s: as `lsq` with x - o for x, and no formula of its own at 1 bit, where the offset takes that part. To
o: 0 inside, 1 outside, with the gradient scale of s.
Initialisation: weights as `lsq`; activations the s and o of least squared error among ranges from min to max, shrunk
about their middle to 2, 4, ..., 100 % (the paper minimises the same error by gradient descent).
""",
    weight=learned(_lsq_grid, _lsq_rule, "step, one per tensor", ALL_BITS),
    act=learned(_lsq_plus_grid, _lsq_plus_rule, "step and offset, one per tensor", ALL_BITS),
)

# -- PACT -------------------------------------------------------------------------------------------------------------


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
Differs: symmetric, since inputs are signed; weights are quantised alike (the paper takes DoReFa's for them).
""",
    weight=learned(_pact_grid, _pact_rule, "clip, one per tensor", ALL_BITS),
    act=learned(_pact_grid, _pact_rule, "clip, one per tensor", ALL_BITS),
)

# -- SEQ --------------------------------------------------------------------------------------------------------------


def _seq_grid(request: Request) -> Grid:
    return Grid(level_count(request.bits), None, scale="one")


def _seq_act_grid(request: Request) -> Grid:
    return Grid(level_count(request.bits), None, scale="rms")


def _seq_rule(request: Request) -> LearnedStep:
    levels = level_count(request.bits)
    edge = 0.99 * levels / 2
    if levels == 2:
        return LearnedStep(ratio=2, lower=-edge / 2, upper=edge / 2, inside="level", start=_mean, balance=1)
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

# -- AdaBin -----------------------------------------------------------------------------------------------------------

adabin = Method(
    summary="1 bit with a centre and a distance: of each row for weights, learned for activations",
    source="arXiv 2208.08084",
    doc="""
Formula: alpha sign((x - beta) / alpha) + beta. Weights: beta the mean and alpha the standard deviation of the row.
Activations: both learned, one each per tensor.
Gradient: through alpha and beta exactly; through the sign, with u = (x - beta) / alpha, 1 - tanh(u / 10)^2 for weights
and 2 - 2|u| inside |u| < 1 for activations.
Initialisation: beta = mean(x), alpha = mean|x - beta| of the first activations seen (the authors: 0 and 1, after
normalised inputs).
Differs: without the paper's Maxout nonlinearity, which is a change to the model.
""",
    weight=Recipe((1,), lambda request: AdaBinWeight()),
    act=Recipe((1,), lambda request: AdaBinActivation(), "centre and distance, one per tensor"),
    formats=("int",),
)
