"""Methods whose steps follow from the rows themselves; none is learned."""

from __future__ import annotations

from dataclasses import replace

from questlm.ops import Grid
from questlm.quant.estimators import clip, identity, trust_bound
from questlm.quant.grids import level_count
from questlm.quant.methods.base import Method, Recipe, Request, dynamic, format_grid
from questlm.quant.quantizers import CenteredSignQuantizer, Quantizer

__all__ = ["bitnet", "clip_ste", "extra_rmsnorm", "pquant", "quarot", "quest", "quest_clip", "quest_noht", "ste"]

_DENSE = ("int", "ternary", "fp4", "lloydmax")
_ALL = (*_DENSE, "int-2:4", "bf16-2:4")


quest = Method(
    summary="Hadamard normalisation, MSE-optimal Gaussian grid, trust estimator",
    source="arXiv 2502.05003",
    doc="""
Formula: x_h = HT(x) in blocks of 128; x_q is the nearest level of a grid that is MSE-optimal for N(0, 1), scaled by the
row's rms. Integer grids are half-integer: step 2 a* rms / (2^b - 1), no zero.
Initialisation: none; scales are dynamic and constants for the gradient.
Gradient to x_h: 1 where |x_q - x_h| <= T rms, T half of the largest interval between levels (a* / (2^b - 1)); else 0.
At 1 bit, 1 where |x_h| <= s a* rms with s = 1.30 (1.25 without rotation). `trust` sets s for any grid.
Formats: int 1 to 8 bits, ternary, fp4, lloydmax (2 to 4 bits), int-2:4 (of each 4 neighbouring pairs the 2 of largest
norm; the mask is taken against the sparse value), bf16-2:4.
Differs: a* is solved to machine precision (the published runs used a coarser solution); FP4's T is half the largest
interval, 0.487 rms (the public code has 0.319).
""",
    weight=dynamic(format_grid, trust_bound),
    act=dynamic(format_grid, trust_bound),
    rotates=True,
    formats=_ALL,
    trusts=True,
)

quest_noht = replace(
    quest,
    summary="QuEST without the Hadamard transform",
    source="arXiv 2502.05003, ablation",
    doc="""
Formula, initialisation and gradient as `quest`, with x in the place of HT(x); at 1 bit s = 1.25.
""",
    rotates=False,
)

quest_clip = Method(
    summary="QuEST with the clipping estimator in place of trust",
    source="arXiv 2502.05003, ablation",
    doc="""
Formula and initialisation as `quest`. Gradient to x_h: 1 where |x_h| is not above the outermost level, else 0.
""",
    weight=dynamic(format_grid, clip),
    act=dynamic(format_grid, clip),
    rotates=True,
    formats=_DENSE,
)

ste = Method(
    summary="MSE-optimal Gaussian grid, straight-through estimator",
    source="arXiv 1308.3432 with the grid of arXiv 2502.05003",
    doc="""
Formula: as `quest-noht`. Initialisation: none. Gradient to x: 1 everywhere, clipped entries included.
""",
    weight=dynamic(format_grid, identity),
    act=dynamic(format_grid, identity),
    formats=_ALL,
)

clip_ste = replace(
    quest_clip,
    summary="MSE-optimal Gaussian grid, gradient inside the clipping range only",
    source="arXiv 1602.02830 (the estimator) with the grid of arXiv 2502.05003",
    doc="""
Formula: as `quest-noht`. Initialisation: none. Gradient to x: 1 where |x| is not above the outermost level, else 0.
""",
    rotates=False,
)


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


def _bitnet_weight(request: Request) -> Grid:
    return Grid(3, 1.0, scale="absmean")


def _eight_bits(request: Request) -> Grid:
    return Grid(255, 1 / 127, scale="absmax")


_BITNET_WEIGHT = dynamic(_bitnet_weight, identity, ("ternary",))
_BITNET_ACT = dynamic(_eight_bits, identity, (8,))
_BITNET = """
Weights: g clip(round(W / g), -1, 1) with g = mean|W| of the tensor. Activations: g clip(round(x / g), -127, 127) with
g = max|x| / 127 of the token. Initialisation: none. Gradient: 1 everywhere, scales are constants.
An RMSNorm with a learned gain (from 1) stands before each quantised layer.
"""

bitnet = Method(
    summary="ternary weights by the tensor's mean magnitude, 8-bit activations by the token's largest",
    source="arXiv 2402.17764",
    doc=_BITNET
    + """
Differs: the norms that a Llama has already stay where they are, so layers that read them are normed twice.
""",
    weight=_BITNET_WEIGHT,
    act=_BITNET_ACT,
    input_norm=True,
)

extra_rmsnorm = Method(
    summary="BitNet's quantisers with an RMSNorm before each layer, faded in layer by layer: for fine-tuning",
    source="arXiv 2505.08823",
    doc=_BITNET
    + """
Schedule: x + lambda (Q(x) - x) for weights and activations, lambda from 0 to 1 over the first half of the training, the
first layers first (`questlm.quant.gradual`); `gradual` sets another share.
Differs: the paper does not fix the ramp's shape; ours is linear.
""",
    weight=_BITNET_WEIGHT,
    act=_BITNET_ACT,
    input_norm=True,
    gradual=0.5,
)


def _pquant_weight(request: Request) -> Quantizer:
    if request.bits == 1:
        return CenteredSignQuantizer()
    return dynamic(_eight_bits, identity).make(request)


pquant = Method(
    summary="1-bit weights, beside a narrow 8-bit branch in each feed-forward layer with learned output scales",
    source="arXiv 2602.22592",
    doc="""
Weights, 1 bit: g sign(W - mean(W)), g = mean|W| of the branch's matrix. Weights of the 8-bit branch: g round(W / g)
with g = max|row| / 127. Activations: as BitNet's, 8 bits by the token's largest magnitude.
Branches: of the feed-forward width, the last 1/16 (a multiple of 16) is the 8-bit branch: rows of gate and up, columns
of down, whose inputs then have a scale for each branch. Each branch's output is multiplied by a learned scale, which
starts at 1. Attention is all 1-bit.
Initialisation: output scales and the norms' gains at 1; quantisers' scales are dynamic and constants for the gradient.
Gradient: 1 everywhere; to a branch's output scale, exact.
An RMSNorm with a learned gain stands before each quantised layer.
Differs: one 8-bit branch (the paper also routes among several), cut from the layer's own width so that the number of
parameters stays what it was; the paper starts its scales unequal.
""",
    weight=Recipe((1, 8), _pquant_weight, "two output scales for each of gate, up and down"),
    act=dynamic(_eight_bits, identity, (8,)),
    formats=("int",),
    input_norm=True,
    branches=True,
)
