"""The activation of Llama's MLP as a module, so that `questlm.prepare` can put one that quantises in its place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SwiGLU"]


class SwiGLU(nn.Module):
    """silu(gate) * up."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two tensors of one shape -> one."""
        return F.silu(gate) * up
