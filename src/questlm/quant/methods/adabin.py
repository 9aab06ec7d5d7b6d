"""AdaBin: 1 bit with a centre and a distance (arXiv 2208.08084)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questlm.grid import Factor, Grid
from questlm.quant.methods.base import FactorSpec, Method, Request

if TYPE_CHECKING:
    from questlm.quant.quantizers import Quantizer

__all__ = ["adabin"]

_GRID = Grid(2, None, scale="one")


def _stored(request: Request) -> Factor:
    return Factor(_GRID, offset=True)


def _weight(request: Request) -> Quantizer:
    from questlm.quant.quantizers.adabin import AdaBinWeight

    return AdaBinWeight(_GRID)


def _act(request: Request) -> Quantizer:
    from questlm.quant.quantizers.adabin import AdaBinActivation

    return AdaBinActivation(_GRID)


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
    weight=FactorSpec((1,), _weight, stored=_stored),
    act=FactorSpec((1,), _act, "centre and distance, one per tensor", _stored),
    formats=("int",),
)
