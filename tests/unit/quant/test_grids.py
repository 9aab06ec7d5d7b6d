"""The grids' constants: the published exact optima, an independent integral, and optimality itself."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.oracle import BITS, SCALE, level_count
from questlm.errors import ConfigError
from questlm.ops import Grid
from questlm.quant import gaussian_grid, gaussian_mse, gaussian_scale
from questlm.quant.estimators import trust_bound

MSE = {  # as printed
    1: "0.36338",
    "ternary": "0.190174",
    2: "0.118846",
    3: "0.0374397",
    4: "0.0115429",
    5: "0.00349521",
    6: "0.00104005",
    7: "0.000304333",
    8: "8.76862e-05",
}
MASKED_PERCENT = {2: 4.6440, 3: 1.9074, 4: 0.7327, 5: 0.2611, 6: 0.0868, 7: 0.0273, 8: 0.0082}


def simpson(values: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Integrals of rows of an odd number of evenly spaced values over intervals of that width."""
    weights = torch.ones(values.shape[-1], dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    return (values * weights).sum(-1) * width / (3 * (values.shape[-1] - 1))


def integrated_mse(levels: int, clip: float) -> float:
    """E[(z - Q(z))^2] by Simpson's rule inside each cell, where the integrand is smooth."""
    grid = torch.linspace(-clip, clip, levels, dtype=torch.float64)
    edges = torch.cat([torch.tensor([-12.0]), (grid[1:] + grid[:-1]) / 2, torch.tensor([12.0])])
    total = 0.0
    for cells, points in ((slice(0, 1), 8001), (slice(1, -1), 201), (slice(-1, None), 8001)):
        low, high, level = edges[:-1][cells], edges[1:][cells], grid[cells].unsqueeze(-1)
        z = torch.lerp(low.unsqueeze(-1), high.unsqueeze(-1), torch.linspace(0, 1, points, dtype=torch.float64))
        error = (z - level) ** 2 * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        total += simpson(error, high - low).sum().item()
    return total


@pytest.mark.parametrize("bits", BITS)
def test_scale_is_the_published_exact_optimum(bits):
    assert gaussian_scale(bits) == pytest.approx(SCALE[bits], abs=1e-9)


@pytest.mark.parametrize("bits", BITS)
def test_error_is_the_published_one_to_its_last_digit(bits):
    printed = MSE[bits]
    digits = len(printed.split("e")[0].replace(".", "").lstrip("0"))
    assert f"{gaussian_mse(bits):.{digits}g}" == printed


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_closed_form_error_equals_numerical_integration(bits, factor):
    clip = factor * SCALE[bits]
    assert gaussian_mse(bits, clip) == pytest.approx(integrated_mse(level_count(bits), clip), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_any_other_clip_is_worse(bits):
    scale = gaussian_scale(bits)
    best = integrated_mse(level_count(bits), scale)
    for factor in (0.5, 0.9, 0.99, 0.999, 1.001, 1.01, 1.1, 2.0):
        assert integrated_mse(level_count(bits), factor * scale) > best


def test_one_bit_scale_is_the_mean_magnitude():
    assert gaussian_scale(1) == pytest.approx(math.sqrt(2 / math.pi), abs=1e-15)


def test_the_float_log2_of_three_means_ternary():
    assert gaussian_scale(math.log2(3)) == gaussian_scale(1.58) == gaussian_scale("ternary")


@pytest.mark.parametrize("bits", BITS)
def test_grid_spans_the_clip(bits):
    grid = gaussian_grid(bits)
    assert grid.levels == level_count(bits)
    assert grid.zero_point * grid.step_per_scale == pytest.approx(gaussian_scale(bits), abs=1e-15)


@pytest.mark.parametrize("bits", [0, 9, 16, -1, 2.5, True, "four", None])
def test_other_widths_are_refused_by_value(bits):
    with pytest.raises(ConfigError, match=r"1 to 8 and 'ternary'") as caught:
        gaussian_scale(bits)
    assert repr(bits) in str(caught.value)


@pytest.mark.parametrize("bits", MASKED_PERCENT)
@pytest.mark.parametrize("rotates", [True, False])
def test_trust_bound_masks_the_published_share(bits, rotates):
    grid = gaussian_grid(bits)
    masked = math.erfc(trust_bound(grid, rotates) * grid.step_per_scale / math.sqrt(2))
    assert round(100 * masked, 4) == MASKED_PERCENT[bits]


@pytest.mark.parametrize(("rotates", "percent"), [(True, 29.96), (False, 31.86)])
def test_one_bit_trust_is_wider_as_in_the_published_runs(rotates, percent):
    grid = gaussian_grid(1)
    masked = math.erfc(trust_bound(grid, rotates) * grid.step_per_scale / math.sqrt(2))
    assert round(100 * masked, 2) == percent


@pytest.mark.parametrize(("levels", "step"), [(1, 1.0), (257, 1.0), (2.0, 1.0), (4, 0.0), (4, -1.0), (4, math.inf)])
def test_impossible_grids_are_refused(levels, step):
    with pytest.raises(ValueError, match=r"levels|positive"):
        Grid(levels, step)


def test_a_step_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="positive"):
        Grid(4, math.nan)
