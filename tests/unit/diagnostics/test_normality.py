"""Normality and error on rows whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from questlm.config import QuantSpec
from questlm.diagnostics import error_by_layer, normality, normality_by_layer, relative_error
from questlm.diagnostics.normality import gaussian_row_maximum
from questlm.ops import hadamard
from questlm.quant import gaussian_mse


def gaussian(rows: int = 1024, length: int = 512, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))


def one_hot(rows: int = 128, length: int = 128) -> Tensor:
    return torch.eye(rows, length)


def test_gaussian_rows_measure_as_gaussian() -> None:
    x = gaussian()
    measured = normality(x)
    # Four standard deviations of the estimate, and -6/K from dividing by the row's own rms.
    assert measured["excess_kurtosis"] == pytest.approx(-6 / 512, abs=4 * math.sqrt(24 / x.numel()))
    assert measured["max_over_rms"] == pytest.approx(gaussian_row_maximum(512), rel=0.02)
    assert measured["beyond"] == pytest.approx(1, abs=4 / math.sqrt(6.3e-5 * x.numel()))


def test_one_entry_a_row_is_as_far_from_gaussian_as_can_be_and_flat_once_rotated() -> None:
    before, after = normality(one_hot()), normality(hadamard(one_hot()))
    assert before["excess_kurtosis"] == pytest.approx(128 - 3, rel=1e-6)
    assert before["max_over_rms"] == before["largest_over_rms"] == pytest.approx(math.sqrt(128), rel=1e-6)
    assert after["excess_kurtosis"] == pytest.approx(1 - 3, rel=1e-5)
    assert after["max_over_rms"] == pytest.approx(1, rel=1e-5)
    assert after["beyond"] == 0


def test_the_scale_of_a_row_does_not_matter() -> None:
    x = gaussian(64)
    scaled = x * torch.logspace(-3, 3, 64)[:, None]
    assert normality(scaled) == pytest.approx(normality(x), rel=1e-4)


def test_rows_of_zeros_are_left_out() -> None:
    x = gaussian(64)
    assert normality(torch.cat([x, torch.zeros(9, 512)])) == pytest.approx(normality(x))
    assert set(normality(torch.zeros(3, 128)).values()) == {0.0}


def test_the_worst_layer_is_shown_with_densities_and_quantiles() -> None:
    layers = {"layers.0.mlp.up": gaussian(256), "layers.1.mlp.down": one_hot() + 0.01 * gaussian(128, 128)}
    result = normality_by_layer(layers, {"layers.0.mlp.up": gaussian(256, seed=1)})
    assert result["weights"]["layers.0.mlp.up"]["row_length"] == 512
    worst = result["worst"]["weights"]
    assert worst["layer"] == "layers.1.mlp.down"
    low, high = worst["edges"]
    for stage, inside in (("before", 127 / 128), ("after", 1.0)):  # the one entry, 11 rms, is outside the picture
        density, quantiles = worst["density"][stage], worst["quantiles"][stage]
        assert sum(density) * (high - low) / len(density) == pytest.approx(inside, abs=1e-3)
        assert len(quantiles) == len(worst["gaussian_quantiles"])
        assert quantiles == sorted(quantiles)
    activations = result["worst"]["activations"]
    middle = activations["gaussian_quantiles"].index(1.0)
    assert activations["quantiles"]["after"][middle] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("method", ["quest", "quest-noht"])
@pytest.mark.parametrize("bits", [1, "ternary", 2, 4, 8])
def test_gaussian_rows_round_with_the_error_of_the_grid(method: str, bits: int | str) -> None:
    # Much of the error of a fine grid is that of a few entries in the tails, and half a million have few.
    close = 0.06 if bits == 8 else 0.02
    assert relative_error(gaussian(), method, bits, "weight") == pytest.approx(gaussian_mse(bits), rel=close)


def test_the_transform_saves_rows_with_outliers() -> None:
    x = gaussian(64, 128)
    x[:, 3] *= 40
    error = error_by_layer({"layers.0.mlp.up": x}, {}, QuantSpec(act_bits=16))
    values = error["weights"]["layers"]["layers.0.mlp.up"]
    assert error["weights"]["gaussian"] == gaussian_mse(4)
    assert values["quest"] < 0.1 * values["quest-noht"]
    assert error["activations"] is None


def test_the_error_of_nothing_is_unknown() -> None:
    assert relative_error(torch.zeros(2, 128), "quest", 4, "activation") is None
