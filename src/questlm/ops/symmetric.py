"""A polynomial of matrices, most of which is symmetric products, of which a kernel computes one half."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.dispatch import choose
from questlm.ops.reference import symmetric as _reference

__all__ = ["odd_polynomial"]


def odd_polynomial(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """a X + b X X^T X + c (X X^T)^2 X of each matrix X, without gradient.

    It applies the polynomial a s + b s^3 + c s^5 to the singular values. Cheapest for wide matrices.

    Args:
        x: (count, rows, columns).

    Returns:
        The same shape and dtype.
    """
    if choose("odd_polynomial", x) != "triton":
        return _reference.odd_polynomial(x, a, b, c)
    from questlm.ops.triton.symmetric import symmetric_product

    with torch.cuda.device_of(x):
        gram = symmetric_product(x.contiguous(), 0.0, 0.0, 1.0)
        return torch.bmm(symmetric_product(gram, a, b, c), x)
