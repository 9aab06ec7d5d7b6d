"""The norm that some methods put before their quantised layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain over the last dimension: (..., K) and (K,) -> (..., K), of the gain's dtype."""
    return F.rms_norm(x.to(gain.dtype), gain.shape, gain, eps)
