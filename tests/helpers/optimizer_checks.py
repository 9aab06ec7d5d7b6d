"""What the kernels of optimizers must give, stated once: for the interpreter and for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.kernel_checks import check_no_worse, spare
from questlm import ops
from questlm.ops.reference import symmetric as reference

MUON = (3.4445, -4.7750, 2.0315)


def check_odd_polynomial(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> None:
    """The kernel's polynomial has at most twice the error of the reference in the same dtype."""
    x = torch.randn(shape)
    x = (x / torch.linalg.matrix_norm(x, 2, keepdim=True)).to(device, dtype)
    with ops.using_backend("triton"):
        found = ops.odd_polynomial(x, *MUON)
    exact = reference.odd_polynomial(x.double(), *MUON)
    check_no_worse(found, reference.odd_polynomial(x, *MUON), exact, spare(device, dtype))


def check_symmetry(rows: int, columns: int, device: str, dtype: torch.dtype) -> None:
    """Both halves of a symmetric product are written, alike to the bit, whatever the number of tiles."""
    from questlm.ops.triton.symmetric import symmetric_product

    x = torch.randn(2, rows, columns, device=device).to(dtype)
    y = symmetric_product(x, 0.0, 0.0, 1.0)
    assert torch.equal(y, y.mT)
    exact = x.double() @ x.double().mT
    check_no_worse(y, torch.bmm(x, x.mT), exact, spare(device, dtype))
    small = (y / columns).contiguous()
    polynomial = symmetric_product(small, 0.5, -2.0, 3.0)
    wide = small.double()
    exact = 0.5 * torch.eye(rows, device=device, dtype=torch.float64) - 2 * wide + 3 * wide @ wide
    check_no_worse(polynomial, exact.to(dtype), exact, spare(device, dtype))


def lists(count: int, shape: tuple[int, int], device: str, transposed: int = 0) -> list[Tensor]:
    """Random matrices of a shape; the last `transposed` of them are transposed views."""
    plain = [torch.randn(shape, device=device) for _ in range(count - transposed)]
    return plain + [torch.randn(shape[::-1], device=device).mT for _ in range(transposed)]


def check_momentum(
    count: int, shape: tuple[int, int], transposed: int, device: str, dtype: torch.dtype, lr_on_device: bool
) -> None:
    """Both passes give what the reference gives: buffers and weights in place, and the stack."""
    gradients, buffers, weights = (lists(count, shape, device, transposed) for _ in range(3))
    again_buffers, again_weights = ([each.clone() for each in some] for some in (buffers, weights))
    stacks = [torch.empty(count, *shape, device=device, dtype=dtype) for _ in range(2)]
    lr = torch.tensor(0.25, device=device) if lr_on_device else 0.25
    for backend, found, state, moved in zip(
        ("triton", "reference"), stacks, (buffers, again_buffers), (weights, again_weights), strict=True
    ):
        with ops.using_backend(backend):
            ops.nesterov(gradients, state, 0.9, found)
            # Of one and the same updates, as those of two backends may be rounded to neighbours.
            ops.decayed_step(moved, stacks[0], lr, 0.5, 2.0)
    torch.testing.assert_close(buffers, again_buffers)
    torch.testing.assert_close(weights, again_weights)
    ulp = 2.0**-7 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(stacks[0].float(), stacks[1].float(), rtol=ulp, atol=1e-5)
