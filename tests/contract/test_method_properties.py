"""What holds of methods whatever the numbers: relations between them, invariances, and rows that are zero or broken."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.method_oracles import FORMAT_BITS, LEARNED, Case, cases, gaussian_error, unit_levels
from helpers.oracle import BITS
from questlm.ops import hadamard
from questlm.quant import METHODS, fake_quantize, gaussian_mse, grid_mse, make_quantizer

CASES = cases(METHODS)
DYNAMIC = [case for case in CASES if case.method not in LEARNED or case[:2] == ("adabin", "weight")]
SPARSE = [case for case in CASES if case.format.endswith("2:4")]
quick = settings(deadline=None, max_examples=8)
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 4), st.sampled_from([16, 48, 128, 256]))
dtypes = st.sampled_from([torch.float32, torch.float64])


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(case: Case, x: torch.Tensor) -> nn.Module:
    module = make_quantizer(case.method, case.bits, role=case.role, shape=tuple(x.shape), format=case.format)
    return module.to(x.dtype)


def differentiate(function, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    values = function(x)
    values.backward(dy)
    return values.detach(), x.grad


@pytest.mark.parametrize("case", [case for case in CASES if case.method == "quest"], ids=str)
@quick
@given(seed=seeds, shape=shapes)
def test_quest_is_quest_without_transform_of_the_transformed(case, seed, shape):
    """To the last bit in float64; in float32 a fused kernel may add in another order."""
    trust = 1.3 if case.bits == 1 else None
    x, dy = draw(seed, *shape), draw(seed + 1, *shape)

    def whole(x):
        return fake_quantize(x, "quest", case.bits, case.role, format=case.format, trust=trust)

    def parts(x):
        return fake_quantize(hadamard(x), "quest-noht", case.bits, case.role, format=case.format, trust=trust)

    (values, dx), (same_values, same_dx) = differentiate(whole, x, dy), differentiate(parts, x, dy)
    assert torch.equal(values, same_values)
    assert torch.equal(dx, same_dx)


@pytest.mark.parametrize("case", SPARSE, ids=str)
@quick
@given(seed=seeds, shape=shapes, dtype=dtypes, ties=st.booleans())
def test_sparsity_keeps_the_largest_two_of_every_four(case, seed, shape, dtype, ties):
    x = draw(seed, *shape, dtype=dtype)
    x_h = hadamard(x) if METHODS[case.method].rotates else x
    if ties:
        x_h = x_h.sign()
        x = hadamard(x_h) if METHODS[case.method].rotates else x_h
    values = make(case, x)(x).detach()
    size = 2 if case.format == "int-2:4" else 1
    norms = x_h.reshape(shape[0], -1, 4, size).norm(dim=-1)
    kept = (values.reshape(shape[0], -1, 4, size) != 0).all(-1)
    assert torch.equal(kept, (values.reshape(shape[0], -1, 4, size) != 0).any(-1))
    assert (kept.sum(-1) == 2).all()
    lowest = norms.masked_fill(~kept, math.inf).amin(-1)
    highest = norms.masked_fill(kept, 0).amax(-1)
    assert (lowest >= highest * (1 - 1e-5)).all()


@pytest.mark.parametrize("case", DYNAMIC, ids=str)
@quick
@given(seed=seeds, shape=shapes, dtype=dtypes, exponent=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_is_exact(case, seed, shape, dtype, exponent):
    x, factor = draw(seed, *shape, dtype=dtype), 2.0**exponent
    quantizer = make(case, x)
    assert torch.equal(quantizer(factor * x), factor * quantizer(x))


@pytest.mark.parametrize("case", CASES, ids=str)
@quick
@given(seed=seeds, shape=shapes, dtype=dtypes, row=st.integers(0, 3))
def test_a_row_of_zeros_gives_finite_values_and_gradients(case, seed, shape, dtype, row):
    x, dy = draw(seed, *shape, dtype=dtype), draw(seed + 1, *shape, dtype=dtype)
    x[row % shape[0]] = 0  # the only row, sometimes
    quantizer = make(case, x)
    for _ in range(2):
        values, dx = differentiate(quantizer, x, dy)
        assert values.isfinite().all()
        assert dx.isfinite().all()
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in quantizer.parameters())


@pytest.mark.parametrize("case", CASES, ids=str)
@quick
@given(seed=seeds, shape=shapes, dtype=dtypes, position=st.tuples(st.integers(0, 3), st.integers(0, 255)))
def test_a_nan_is_never_hidden_in_its_row(case, seed, shape, dtype, position):
    x = draw(seed, *shape, dtype=dtype)
    quantizer = make(case, x)
    quantizer(x)  # learned numbers come from good data
    row = position[0] % shape[0]
    x[row, position[1] % shape[1]] = math.nan
    assert quantizer(x)[row].isnan().any()


@pytest.mark.parametrize("case", [c for c in DYNAMIC if c.format == "int"], ids=str)
@quick
@given(seed=seeds, shape=shapes)
def test_a_row_holds_no_more_levels_than_its_bits(case, seed, shape):
    x = draw(seed, *shape)
    count = {"ternary": 3}.get(case.bits) or 2**case.bits
    assert all(len(row.unique()) <= count for row in make(case, x)(x).detach())


# The error of a grid


def integrated(levels: list[float]) -> float:
    """E[(z - Q(z))^2] on N(0, 1) by Gauss-Legendre quadrature on short pieces of each cell."""
    points, weights = np.polynomial.legendre.leggauss(20)
    edges = [-12.0, *[(a + b) / 2 for a, b in pairwise(levels)], 12.0]
    total = 0.0
    for level, (low, high) in zip(levels, pairwise(edges), strict=True):
        for a, b in pairwise(np.linspace(low, high, max(2, math.ceil(4 * (high - low))))):
            z = (a + b) / 2 + (b - a) / 2 * points
            total += (b - a) / 2 * (weights * (z - level) ** 2 * np.exp(-z * z / 2)).sum()
    return total / math.sqrt(2 * math.pi)


GRIDS = [("int", bits) for bits in BITS] + [(form, bits) for form in ("fp4", "lloydmax") for bits in FORMAT_BITS[form]]


@pytest.mark.parametrize(("form", "bits"), GRIDS)
def test_the_stated_error_of_a_grid_is_its_integral(form, bits):
    levels = unit_levels(form, bits).tolist()
    want = integrated(levels)
    assert gaussian_error(levels) == pytest.approx(want, abs=1e-10)  # the oracle's own closed form
    assert grid_mse(form, bits) == pytest.approx(want, rel=1e-6)
    if form == "int":
        assert gaussian_mse(bits) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(("form", "bits"), GRIDS)
def test_the_levels_used_are_those_of_least_error(form, bits):
    """Seen through the function, by a row of rms 1 that sweeps the range of the grid."""
    sweep = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    x = torch.cat([sweep, torch.full([17_000], 1e-3, dtype=torch.float64)]).unsqueeze(0)
    rms = x.square().mean().sqrt()
    seen = fake_quantize(x, "ste", bits, format=form).unique() / rms
    assert x.max() / rms > 3.93  # beyond the outermost level of 8 bits
    assert seen.tolist() == pytest.approx(unit_levels(form, bits).tolist(), abs=1e-9)
