"""A polynomial of matrices whose factors are symmetric."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["odd_polynomial"]


def odd_polynomial(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """a X + b X X^T X + c (X X^T)^2 X of each matrix X: (count, rows, columns) -> the same shape and dtype."""
    gram = torch.bmm(x, x.mT)
    return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
