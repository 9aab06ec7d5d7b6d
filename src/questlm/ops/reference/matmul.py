"""The product of two quantised matrices, from their codes.

Codes are multiplied as multiples of the step (half-integers, exact in bf16) and each row's step is applied to the
result. In float32 the inner products are then exact whatever the order of summation, as long as
(levels - 1)^2 K < 2^24: always, for up to 4 bits and K <= 74,000. So every backend gives the same forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.grid import Grid
from questlm.ops.reference.hadamard import without_autocast
from questlm.ops.reference.quantize import levels

__all__ = ["factor", "scaled_matmul"]


def scaled_matmul(
    x: Tensor, x_step: Tensor | None, x_grid: Grid | None, w: Tensor, w_step: Tensor | None, w_grid: Grid | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """y = x_q w_q^T.

    Args:
        x: (tokens, K) uint8 codes, or rotated floating-point values where `x_grid` is None.
        x_step: (tokens, 1) step sizes, or None.
        w: (out, K), as x. w_step: (out, 1), or None.
        dtype: what the product is computed in, and the dtype of the result.

    Returns:
        (tokens, out) of `dtype`.
    """
    with without_autocast(x):
        y = factor(x, x_grid, dtype) @ factor(w, w_grid, dtype).T
    if x_step is not None:
        y = y * x_step
    if w_step is not None:
        y = y * w_step.T
    # Where `.to` has nothing to do it returns y itself, and torch.compile (seen in 2.11) then loses the gradient of the
    # autograd.Function around it.
    return y if y.dtype is dtype else y.to(dtype)


def factor(matrix: Tensor, grid: Grid | None, dtype: torch.dtype) -> Tensor:
    """A factor of the product without its row steps: levels of codes, or the values themselves."""
    return matrix.to(dtype) if grid is None else levels(matrix, grid, dtype)
