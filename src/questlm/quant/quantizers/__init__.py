"""Quantisers of one factor of a product.

base           the interface
dynamic        step sizes computed from the rows themselves
learned        step sizes that are parameters
adabin         AdaBin's learned centre and distance
centered_sign  1-bit weights around the mean of the tensor
sparse         2:4 sparse bf16 weights
stored_steps   steps kept in fp16 or fp8
"""

from questlm.quant.quantizers.base import (
    LearningQuantizer,
    MaskedRounding,
    Quantizer,
    StraightThrough,
    refuse_transforms,
)
from questlm.quant.quantizers.centered_sign import CenteredSignQuantizer
from questlm.quant.quantizers.dynamic import DynamicQuantizer, MaskedQuantizer
from questlm.quant.quantizers.sparse import SparseQuantizer

__all__ = [
    "CenteredSignQuantizer",
    "DynamicQuantizer",
    "LearningQuantizer",
    "MaskedQuantizer",
    "MaskedRounding",
    "Quantizer",
    "SparseQuantizer",
    "StraightThrough",
    "refuse_transforms",
]
