"""BitNet b1.58 (arXiv 2402.17764)."""

from __future__ import annotations

from questlm.grid import Grid
from questlm.quant.estimators import identity
from questlm.quant.methods.base import Method, Request, dynamic, eight_bits

__all__ = ["BITNET_RULES", "EIGHT_BIT_ACT", "TERNARY_WEIGHT", "bitnet"]


def _bitnet_weight(request: Request) -> Grid:
    return Grid(3, 1.0, scale="absmean")


TERNARY_WEIGHT = dynamic(_bitnet_weight, identity, ("ternary",))
EIGHT_BIT_ACT = dynamic(eight_bits, identity, (8,))
BITNET_RULES = """
Weights: g clip(round(W / g), -1, 1) with g = mean|W| of the tensor. Activations: g clip(round(x / g), -127, 127) with
g = max|x| / 127 of the token. Initialisation: none. Gradient: 1 everywhere, scales are constants.
An RMSNorm with a learned gain (from 1) stands before each quantised layer.
"""

bitnet = Method(
    summary="ternary weights by the tensor's mean magnitude, 8-bit activations by the token's largest",
    source="arXiv 2402.17764",
    doc=BITNET_RULES
    + """
Differs: the norms of the Llama stay in place, so the input of layers behind them is normalised twice.
""",
    weight=TERNARY_WEIGHT,
    act=EIGHT_BIT_ACT,
    input_norm=True,
)
