"""Norm and activation of a Llama as modules, so that `questlm.prepare` can put ones that quantise in their place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResidualNorm", "SwiGLU"]


class ResidualNorm(nn.RMSNorm):
    """What a sublayer reads: the norm of the residual stream, after the last sublayer's output is added to it."""

    def forward(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the residual r = x + delta (..., K), or x without `delta`, and RMSNorm(r)."""
        if delta is not None:
            x = x + delta
        return x, super().forward(x)


class SwiGLU(nn.Module):
    """silu(gate) * up."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) * up, for tensors of one shape."""
        return F.silu(gate) * up
