"""What happens inside quantised training, measured and drawn: gradients, masks, normality, rounding error."""

from questlm.diagnostics.alignment import gradient_alignment
from questlm.diagnostics.collect import diagnose
from questlm.diagnostics.error import error_by_layer, relative_error
from questlm.diagnostics.masks import gaussian_masked, mask_history, trust_bound, trust_mask
from questlm.diagnostics.normality import normality, normality_by_layer

__all__ = [
    "diagnose",
    "error_by_layer",
    "gaussian_masked",
    "gradient_alignment",
    "mask_history",
    "normality",
    "normality_by_layer",
    "relative_error",
    "trust_bound",
    "trust_mask",
]
