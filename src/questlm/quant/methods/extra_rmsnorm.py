"""BitNet's quantisers faded in, for fine-tuning (arXiv 2505.08823)."""

from __future__ import annotations

from questlm.quant.methods.base import Method
from questlm.quant.methods.bitnet import BITNET_RULES, EIGHT_BIT_ACT, TERNARY_WEIGHT

__all__ = ["extra_rmsnorm"]

extra_rmsnorm = Method(
    summary="BitNet's quantisers with an RMSNorm before each layer, faded in layer by layer: for fine-tuning",
    source="arXiv 2505.08823",
    doc=BITNET_RULES
    + """
Schedule: x + lambda (Q(x) - x) for weights and activations, lambda from 0 to 1 over the first half of the training, the
first layers first (`questlm.quant.gradual`); `gradual` sets another share.
Differs: the paper does not fix the ramp's shape; ours is linear.
""",
    weight=TERNARY_WEIGHT,
    act=EIGHT_BIT_ACT,
    input_norm=True,
    gradual=0.5,
)
