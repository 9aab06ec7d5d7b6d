"""Packed weights in the GPU kernels, under Triton's interpreter: the numbers of the reference for every width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from questlm import ops
from questlm.ops import Grid, PackedFormat
from questlm.ops.dispatch import reasons
from questlm.quant import gaussian_grid

triton = pytest.importorskip("triton")

CPU = torch.device("cpu")
WIDTHS: list[tuple[int | str, int | str]] = [
    (1, 1),
    (1, 4),
    (1, 8),
    (2, 2),
    (3, 3),
    (4, 4),
    (4, 8),
    (6, 5),
    (8, 8),
    ("ternary", "ternary"),
    ("ternary", 8),
]


def stored(out: int, k: int, grid: Grid) -> dict[str, Tensor]:
    codes, step, _ = ops.quantize(torch.randn(out, k), grid, 1)
    return {"codes": ops.pack(codes, grid.levels), "step": step}


def compare(x: Tensor, tensors: dict[str, Tensor], form: PackedFormat, dtype: torch.dtype = torch.float32) -> None:
    """The kernels and the reference, which may differ in the last digits of a step."""
    results = []
    for backend in ("reference", "triton"):
        with ops.using_backend(backend):
            results.append(ops.packed_linear(x, ops.prepack(tensors, form, CPU, dtype)))
    expected, y = results
    assert y.dtype is dtype and y.shape == expected.shape
    tolerance = 2.0**-7 if dtype is torch.bfloat16 else 1e-5  # the kernels round once, the reference also its sums
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(("weight_bits", "act_bits"), WIDTHS)
@pytest.mark.parametrize(("out", "k", "block", "tokens"), [(5, 64, 32, 1), (3, 48, 16, 3), (6, 160, 32, 18)])
def test_codes_of_every_width_multiply_as_in_the_reference(
    weight_bits: int | str, act_bits: int | str, out: int, k: int, block: int, tokens: int
) -> None:
    weight, act = gaussian_grid(weight_bits), gaussian_grid(act_bits)
    compare(torch.randn(tokens, k), stored(out, k, weight), PackedFormat(k, block, weight, act))


@pytest.mark.slow
@pytest.mark.parametrize("weight_bits", [1, 2, 3, 4, 8, "ternary"])
@pytest.mark.parametrize("tokens", [2, 70])
def test_inputs_that_are_not_rounded(weight_bits: int | str, tokens: int) -> None:
    weight = gaussian_grid(weight_bits)
    compare(torch.randn(tokens, 48), stored(5, 48, weight), PackedFormat(48, 16, weight, None))


@pytest.mark.parametrize("tokens", [2, 70])
def test_8_bit_rows(tokens: int) -> None:
    tensors = {"codes": torch.randint(-127, 128, (7, 48), dtype=torch.int8), "scale": torch.rand(7, 1)}
    compare(torch.randn(tokens, 48), tensors, PackedFormat(48, 1, None, None))


def test_half_precision_a_bias_and_a_learned_step() -> None:
    grid = gaussian_grid(4)
    tensors = stored(9, 64, grid)
    form = PackedFormat(64, 32, grid, grid)
    compare(torch.randn(2, 64), tensors, form, torch.bfloat16)
    compare(torch.randn(2, 64), {**tensors, "bias": torch.randn(9)}, form)
    learned = Grid(16, None, "one")
    compare(torch.randn(2, 64), {**tensors, "act_step": torch.full((1, 1), 0.3)}, PackedFormat(64, 32, grid, learned))


def test_rows_of_any_size_and_no_rows() -> None:
    grid = gaussian_grid(4)
    x = torch.randn(4, 64) * torch.tensor([[0.0], [2.0**-40], [1.0], [2.0**40]])
    compare(x, stored(3, 64, grid), PackedFormat(64, 32, grid, grid))
    with ops.using_backend("triton"):
        weight = ops.prepack(stored(3, 64, grid), PackedFormat(64, 32, grid, grid), CPU)
        assert ops.packed_linear(x[:0], weight).shape == (0, 3)


def test_it_keeps_packed_bytes_and_says_what_it_cannot_run() -> None:
    grid = gaussian_grid(4)
    tensors, form = stored(64, 256, grid), PackedFormat(256, 128, grid, grid)
    with ops.using_backend("triton"):
        assert ops.prepack(tensors, form, CPU).nbytes < tensors["codes"].nbytes + 64 * 20
        assert dict(reasons("packed_linear", tensors, form, CPU, torch.float32, True))["triton"] is None
        bent = PackedFormat(256, 128, Grid(4, 1.0, table=(-2.0, -0.5, 0.5, 2.0)), None)
        found = dict(reasons("packed_linear", tensors, bent, CPU, torch.float32, False))
    assert "evenly spaced" in str(found["triton"])
    assert "on request" in str(dict(reasons("packed_linear", tensors, form, CPU, torch.float32, True))["triton"])
