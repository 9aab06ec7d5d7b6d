"""A slow, independent statement of the method in float64: dense matrices, one row at a time, no code of questlm.

The constants are the published table of exact optima, so this file and the package can only agree by both being right.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BITS = (1, 2, 3, 4, 5, 6, 7, 8, "ternary")
ROLES = ("weight", "activation")

SCALE = {
    1: 0.7978845608,
    "ternary": 1.2240063619,
    2: 1.4935300289,
    3: 2.0510680451,
    4: 2.5140045915,
    5: 2.9161512493,
    6: 3.2779847974,
    7: 3.6110971963,
    8: 3.9222044167,
}


def level_count(bits: int | str) -> int:
    return 3 if bits == "ternary" else 2 ** int(bits)


@cache
def sylvester(size: int) -> Tensor:
    """H[r, c] = (-1)^popcount(r & c) / sqrt(size)."""
    rows = [[(-1.0) ** (r & c).bit_count() for c in range(size)] for r in range(size)]
    return torch.tensor(rows, dtype=torch.float64) / size**0.5


@cache
def rotation(dimension: int, block_size: int | None = None) -> Tensor:
    """The dense block-diagonal matrix; by default the blocks of 128, or the largest power of two that divides."""
    if block_size is None:
        block_size = next(b for b in (128, 64, 32, 16) if dimension % b == 0)
    return torch.block_diag(*[sylvester(block_size)] * (dimension // block_size))


def quantize_rows(x: Tensor, bits: int | str, block_size: int | None = None) -> tuple[Tensor, Tensor]:
    """x_q and the trust mask, both (rows, K) float64 in the Hadamard domain. 16 bits: x_h and a mask of ones."""
    x_h = x.detach().double() @ rotation(x.shape[-1], block_size)
    if bits == 16:
        return x_h, torch.ones_like(x_h)
    levels, scale = level_count(bits), SCALE[bits]
    x_q, mask = torch.zeros_like(x_h), torch.zeros_like(x_h)
    for i, row in enumerate(x_h):
        rms = row.square().mean().sqrt()
        step = 2 * scale * rms / (levels - 1)
        if bits == "ternary":
            x_q[i] = step * torch.round(row / step).clamp(-1, 1)
        else:
            x_q[i] = step * (torch.round(row / step + 0.5).clamp(1 - levels // 2, levels // 2) - 0.5)
        inside = row.abs() <= 1.30 * scale * rms if bits == 1 else (x_q[i] - row).abs() <= scale / (levels - 1) * rms
        mask[i] = inside.double()
    return x_q, mask


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    dy: Tensor,
    w_bits: int | str,
    a_bits: int | str,
    block: int | None = None,
) -> dict[str, Tensor]:
    """Output and gradients of a quantised layer: x (tokens, K), w (out, K), dy (tokens, out)."""
    h = rotation(x.shape[-1], block)
    x_q, x_mask = quantize_rows(x, a_bits, block)
    w_q, w_mask = quantize_rows(w, w_bits, block)
    dy = dy.double()
    y = x_q @ w_q.T
    return {
        "y": y if bias is None else y + bias.detach().double(),
        "dx": (x_mask * (dy @ w_q)) @ h.T,
        "dw": (w_mask * (dy.T @ x_q)) @ h.T,
        "db": dy.sum(0),
    }
