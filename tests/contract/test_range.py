"""Rows of any size from 1e-30 to 1e36 are quantised like rows of size 1: the same codes, steps in proportion.

Powers of two change no bit of a number's fraction, so everything must come out exactly so many times as large. That the
numbers at size 1 are right, `test_method_properties` says.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from questlm import QuantSpec, ops, prepare
from questlm.ops import Grid
from questlm.quant import METHODS, gaussian_grid, make_quantizer
from questlm.quant.grids import fp4_grid
from questlm.quant.methods import FORMAT_BITS

SIZES = [2.0**-98, 2.0**-66, 2.0**65, 2.0**116]  # the squares of the inner two leave float32 too
CASES = [
    (name, role, bits, format)
    for name, method in METHODS.items()
    for role in ("weight", "activation")
    for format in method.formats
    if role == "weight" or "2:4" not in format
    for bits in (method.factor(role).bits if format == "int" else FORMAT_BITS[format])
]


def rows(seed: int = 0) -> Tensor:
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(seed))
    x[2] = 0
    return x


def results(quantizer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    values = quantizer(x)
    values.backward(dy)
    assert x.grad is not None
    return values.detach(), x.grad


@pytest.mark.parametrize(("name", "role", "bits", "format"), CASES)
def test_values_are_in_proportion_and_gradients_the_same(name, role, bits, format):
    one = make_quantizer(name, bits, role, (6, 256), format)
    values, dx = results(one, rows(), rows(1))
    for size in SIZES:
        other = make_quantizer(name, bits, role, (6, 256), format)
        found, found_dx = results(other, rows() * size, rows(1))
        assert torch.equal(found, values * size)
        assert torch.equal(found_dx, dx)
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(b, a) or torch.equal(b, a * size)  # steps in units of the rms, and absolute ones


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("grid", [gaussian_grid(1), gaussian_grid(4), gaussian_grid("ternary"), fp4_grid()])
def test_codes_masks_and_steps_on_a_backend(grid: Grid, backend: str) -> None:
    with ops.using_backend(backend):
        for block in (1, 16, 128):
            codes, step, mask = ops.quantize(rows(), grid, block, 0.75 * grid.largest)
            for size in SIZES:
                found = ops.quantize(rows() * size, grid, block, 0.75 * grid.largest)
                assert torch.equal(found.codes, codes)
                torch.testing.assert_close(found.step, step * size, rtol=0 if backend == "reference" else 2e-7, atol=0)
                assert found.mask is not None and mask is not None and torch.equal(found.mask, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_of_the_reference(dtype: torch.dtype) -> None:
    sizes = [2.0**-900, *SIZES, 2.0**900] if dtype is torch.float64 else SIZES
    codes, step, _ = ops.quantize(rows().to(dtype), gaussian_grid(4), 128)
    for size in sizes:
        found = ops.quantize(rows().to(dtype) * size, gaussian_grid(4), 128)
        assert torch.equal(found.codes, codes) and torch.equal(found.step, step * size)


@pytest.mark.parametrize("method", ["quest", "quarot", "lsq", "lsq-row", "lsq+", "pact", "seq"])
def test_a_layer_computes_with_inputs_and_weights_of_such_a_size(method: str) -> None:
    def layer(size: float) -> nn.Module:
        linear = nn.Linear(256, 6, bias=False)
        with torch.no_grad():
            linear.weight.copy_(rows(1) * size)
        return prepare(linear, QuantSpec(method=method, weight_bits=2, act_bits=2))

    y = layer(1.0)(rows())
    for size in SIZES:
        assert torch.equal(layer(1 / size)(rows() * size), y)
        assert torch.equal(layer(1.0)(rows() * size), y * size)
