"""The polynomial of matrices is the polynomial of their singular values."""

from __future__ import annotations

import pytest
import torch

from questlm import ops


@pytest.mark.parametrize("shape", [(2, 5, 9), (1, 9, 5), (3, 1, 1)])
def test_it_is_the_polynomial_of_the_singular_values(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, s, right = torch.linalg.svd(x, full_matrices=False)
    expected = left @ torch.diag_embed(2 * s - 3 * s**3 + 0.5 * s**5) @ right
    torch.testing.assert_close(ops.odd_polynomial(x, 2.0, -3.0, 0.5), expected)
