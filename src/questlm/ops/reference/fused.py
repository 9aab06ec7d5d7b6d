"""RMSNorm or SwiGLU followed by quantisation, and the gradients through both: what the fused kernels must compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from questlm.ops.precision import as_dtype
from questlm.ops.reference.hadamard import masked_hadamard

__all__ = ["norm", "norm_backward", "swiglu", "swiglu_backward"]


def norm(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm of rows x (rows, K), rounded to `dtype`; u = x / rms of `dtype` and 1 / rms (rows, 1).

    Computed in float32 at least, as `torch.nn.RMSNorm` does under autocast.
    """
    x = as_dtype(x, torch.promote_types(x.dtype, torch.float32))
    rstd = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    normed = F.rms_norm(x, gain.shape, gain.to(x.dtype), eps)  # to the bit what the plain norm gives
    return normed.to(dtype), (x * rstd).to(dtype), rstd


def norm_backward(
    gradient: Tensor, mask: Tensor | None, unit: Tensor, rstd: Tensor, gain: Tensor, block_size: int
) -> tuple[Tensor, Tensor]:
    """dx (rows, K) and dgain (K,), of the dtype of `rstd`, from the gradient of the rotated, quantised rows."""
    dh = masked_hadamard(gradient, mask, block_size)
    unit = unit.to(rstd.dtype)
    weighted = dh * gain
    along = (unit * weighted).mean(dim=-1, keepdim=True)
    return (weighted - unit * along) * rstd, (dh * unit).sum(0)


def swiglu(gate: Tensor, up: Tensor, dtype: torch.dtype) -> Tensor:
    """silu(gate) * up, to the bit what the plain activation gives, rounded to `dtype`."""
    return (F.silu(gate) * up).to(dtype)


def swiglu_backward(gradient: Tensor, mask: Tensor | None, gate: Tensor, up: Tensor, block_size: int) -> Tensor:
    """dgate and dup side by side, (rows, 2 K) of the dtype of `gate`, from the gradient of the rotated rows."""
    da = masked_hadamard(gradient, mask, block_size)
    wide_gate, wide_up = gate.to(da.dtype), up.to(da.dtype)
    share = torch.sigmoid(wide_gate)
    dgate = da * wide_up * share * (1 + wide_gate * (1 - share))
    return torch.cat((dgate, da * wide_gate * share), dim=1).to(gate.dtype)
