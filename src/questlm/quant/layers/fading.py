"""The product of a layer while quantisation is faded in (arXiv 2505.08823). `quant.gradual` has the schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm import ops
from questlm.quant.quantizers import Quantizer

__all__ = ["blended_product"]

Factor = tuple[Tensor, Quantizer | None]


def blended_product(factors: tuple[Factor, Factor], strength: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    """Compute the product of z + strength (Q(z) - z) for both factors z, in the Hadamard domain.

    Args:
        factors: x (tokens, K) and w (out, K), each with its quantiser, or None for a factor that is not quantised.
        strength: scalar in [0, 1]; 0: not quantised.
        block_size: entries that the Hadamard transform rotates together; 1: no transform.
        dtype: of the product.

    Returns:
        (tokens, out).
    """
    mixed = []
    for rows, quantizer in factors:
        rotated = ops.hadamard(rows, block_size) if block_size > 1 else rows
        values = rotated if quantizer is None else quantizer(rows)
        mixed.append(rotated + strength.to(rotated.dtype) * (values - rotated))
    with ops.without_autocast(factors[0][0]):
        return mixed[0].to(dtype) @ mixed[1].to(dtype).T
