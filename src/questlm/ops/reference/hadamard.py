"""The blockwise Hadamard transform.

Each contiguous block of B = 2^k entries of the last dimension is multiplied by the Sylvester matrix H_B / sqrt(B),
H_1 = (1), H_2B = [[H, H], [H, -H]]. It is orthonormal and symmetric, hence its own inverse and its own gradient.
Row r, column c of H_B is (-1)^popcount(r & c). The product takes B multiplications an entry, whatever the dimension:
no K x K matrix is ever made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.ops.precision import without_autocast

__all__ = ["hadamard", "masked_hadamard"]

_MATRICES: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def hadamard(x: Tensor, block_size: int) -> Tensor:
    """Transform the last dimension, in float32 for 16-bit inputs and in the input's own precision otherwise.

    Args:
        x: (..., K) floating point, K a multiple of `block_size`.
        block_size: a power of two; 1 is the identity.

    Returns:
        (..., K), of the dtype computed in.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if block_size == 1:
        return x
    blocks = x.reshape(-1, block_size)
    with without_autocast(x):
        return (blocks @ _matrix(block_size, x.dtype, x.device)).reshape(x.shape)


def masked_hadamard(gradient: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """Gradient of a masked, rotated tensor: IHT(M * gradient). QuEST (arXiv 2502.05003), section 3, backward pass.

    Args:
        gradient: (rows, K) floating point, in the rotated domain.
        mask: (rows, ceil(K / 8)) uint8 bits from `quantize`, or None to let everything pass.
        block_size: as in the forward pass.

    Returns:
        (rows, K), float32 for 16-bit gradients.
    """
    from questlm.ops.reference.packing import unpack

    if mask is not None:
        gradient = gradient * unpack(mask, 1, gradient.shape[-1])
    return hadamard(gradient, block_size)


def _matrix(block_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():  # the compiler shares what is the same in one graph, and traces no cache
        return _sylvester(block_size, device).to(dtype)
    key = (block_size, dtype, device)
    if key in _MATRICES:
        return _MATRICES[key]
    with torch.inference_mode(False):  # an inference tensor could not be used for training later
        matrix = _sylvester(block_size, device).to(dtype)
    if type(matrix) is Tensor:  # a fake tensor, made while tracing, must not outlive the trace
        _MATRICES[key] = matrix
    return matrix


def _sylvester(block_size: int, device: torch.device) -> Tensor:
    """H / sqrt(block_size), float64, from the parity of the bits that row and column number share."""
    numbers = torch.arange(block_size, device=device)
    shared = numbers.unsqueeze(1) & numbers
    for shift in (32, 16, 8, 4, 2, 1):
        shared = shared ^ (shared >> shift)
    return (1 - 2 * (shared & 1)).double() / block_size**0.5
