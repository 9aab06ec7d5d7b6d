"""Entropies are those that the literature gives for the optimal grids, and no code takes more than it is packed in."""

from __future__ import annotations

import pytest

from questlm.artifact.format import TensorSpec
from questlm.quant.grids import gaussian_grid
from questlm.scaling.coded import code_entropy, coded_bytes


@pytest.mark.parametrize(("bits", "entropy"), [(1, 1.00), (2, 1.90), (3, 2.76), (4, 3.60), (5, 4.45), (6, 5.31)])
def test_the_entropy_of_the_optimal_grids(bits: int, entropy: float) -> None:
    assert code_entropy(gaussian_grid(bits)) == pytest.approx(entropy, abs=0.006)


def test_codes_of_one_bit_are_stored_as_they_are() -> None:
    spec = TensorSpec("U8", (640, 80), "codes", (2, 640))
    assert coded_bytes(spec, "codes", gaussian_grid(1)) == spec.bytes + 8
