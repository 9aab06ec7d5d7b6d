"""1-bit weights beside a narrow 8-bit branch (arXiv 2602.22592)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questlm.grid import Factor, Grid
from questlm.quant.estimators import identity
from questlm.quant.methods.base import FactorSpec, Method, Request, dynamic, eight_bits

if TYPE_CHECKING:
    from questlm.quant.quantizers import Quantizer

__all__ = ["pquant"]

_SIGN = Grid(2, None, scale="one")
_NARROW = dynamic(eight_bits, identity)


def _pquant_weight(request: Request) -> Quantizer:
    from questlm.quant.quantizers import CenteredSignQuantizer

    return CenteredSignQuantizer(_SIGN) if request.bits == 1 else _NARROW.make(request)


def _stored(request: Request) -> Factor:
    return Factor(_SIGN if request.bits == 1 else eight_bits(request))


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
Differs: one 8-bit branch (the paper also routes among several), split from the layer's own width so that the number of
parameters does not change; the paper starts its scales unequal.
""",
    weight=FactorSpec((1, 8), _pquant_weight, "two output scales for each of gate, up and down", _stored),
    act=dynamic(eight_bits, identity, (8,)),
    formats=("int",),
    input_norm=True,
    branches=True,
)
