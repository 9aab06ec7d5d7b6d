"""AdaBin: 1 bit with a centre and a distance (arXiv 2208.08084)."""

from __future__ import annotations

from questlm.quant.methods.base import FactorSpec, Method
from questlm.quant.quantizers.adabin import AdaBinActivation, AdaBinWeight

__all__ = ["adabin"]

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
    weight=FactorSpec((1,), lambda request: AdaBinWeight()),
    act=FactorSpec((1,), lambda request: AdaBinActivation(), "centre and distance, one per tensor"),
    formats=("int",),
)
