"""Quantisers of one factor of a product.

A file each: steps that follow from the rows (dynamic), learned steps, AdaBin's centre and distance, the centred sign of
1-bit weights, and sparse bf16 weights.
"""

from questlm.quant.quantizers.base import (
    LearningQuantizer,
    MaskedRounding,
    Quantizer,
    StraightThrough,
    refuse_transforms,
)
from questlm.quant.quantizers.centered_sign import CenteredSignQuantizer
from questlm.quant.quantizers.dynamic import DynamicQuantizer
from questlm.quant.quantizers.sparse import SparseQuantizer

__all__ = [
    "CenteredSignQuantizer",
    "DynamicQuantizer",
    "LearningQuantizer",
    "MaskedRounding",
    "Quantizer",
    "SparseQuantizer",
    "StraightThrough",
    "refuse_transforms",
]
