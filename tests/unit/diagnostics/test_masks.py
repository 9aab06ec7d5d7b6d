"""Trust masks: what is masked, how much of a Gaussian, and what persistence means."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from questlm.diagnostics import gaussian_masked, mask_history, trust_bound, trust_mask
from questlm.diagnostics.masks import JOINT_BINS
from questlm.ops import hadamard
from questlm.quant import gaussian_scale

NAMES = ("layers.0.attention.q", "layers.0.mlp.down", "layers.1.attention.q")


def gaussian(seed: int, rows: int = 256, length: int = 256) -> Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))


def weights(seed: int) -> dict[str, Tensor]:
    return {name: gaussian(10 * seed + i) for i, name in enumerate(NAMES)}


def history(*snapshots: dict[str, Tensor], bits: int = 2) -> dict[str, Any]:
    return mask_history(enumerate(snapshots), len(snapshots), "quest", bits, show_progress=False)


@pytest.mark.parametrize("method", ["quest", "quest-noht"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_bound_is_half_a_step_beyond_the_outermost_level(method: str, bits: int) -> None:
    assert trust_bound(method, bits) == pytest.approx(gaussian_scale(bits) * (1 + 1 / (2**bits - 1)), abs=1e-5)


@pytest.mark.parametrize(("method", "factor"), [("quest", 1.30), ("quest-noht", 1.25)])
def test_one_bit_has_the_published_factor(method: str, factor: float) -> None:
    assert trust_bound(method, 1) == pytest.approx(factor * gaussian_scale(1), abs=1e-5)


def test_straight_through_masks_nothing() -> None:
    assert trust_bound("ste", 4) is None
    assert gaussian_masked("ste", 4) == 0
    assert bool(trust_mask(gaussian(0), "ste", 4).all())


@pytest.mark.parametrize(
    ("method", "bits", "percent"),
    [
        ("quest", 1, 29.96),
        ("quest-noht", 1, 31.86),
        ("quest", 2, 4.6440),
        ("quest", 3, 1.9074),
        ("quest", 4, 0.7327),
        ("quest", 8, 0.0082),
    ],
)
def test_the_gaussian_share_is_the_published_one(method: str, bits: int, percent: float) -> None:
    assert 100 * gaussian_masked(method, bits) == pytest.approx(percent, abs=0.006)


@pytest.mark.parametrize("bits", [1, "ternary", 2, 4])
def test_gaussian_rows_are_masked_as_expected(bits: int | str) -> None:
    x = gaussian(1, 1024, 512)
    share, expected = float((~trust_mask(x, "quest", bits)).double().mean()), gaussian_masked("quest", bits)
    # Dividing a row by its own rms takes a little of its tails: of the order of 1/K, hence the second term.
    assert abs(share - expected) < 4 * math.sqrt(expected / x.numel()) + 0.02 * expected


def test_a_mask_lies_in_the_rotated_domain() -> None:
    rotated = 0.9 * gaussian(3, 1, 128).sign()
    rotated[0, 5] = rotated[0, 77] = 4.5
    mask = trust_mask(hadamard(rotated), "quest", 4)
    assert (~mask).nonzero().tolist() == [[0, 5], [0, 77]]
    assert bool(trust_mask(hadamard(rotated), "quest-noht", 4).all())  # there the rows have no outlier


def test_identical_checkpoints_have_identical_masks() -> None:
    result = history(weights(0), weights(0))
    (pair,) = result["persistence"]["pairs"]
    assert (pair["from"], pair["to"]) == (0, 1)
    assert pair["masked_if_masked"] == 1.0
    assert pair["masked_if_passing"] == 0.0
    assert set(pair["by_kind"]) == {"q", "down"}
    joint = torch.tensor(pair["joint"])
    assert joint.shape == (JOINT_BINS, JOINT_BINS)
    assert int(joint.diagonal().sum()) == int(joint.sum()) == 3 * 256 * 256


def test_masks_of_unrelated_checkpoints_are_drawn_afresh() -> None:
    (pair,) = history(weights(0), weights(1))["persistence"]["pairs"]
    for key in ("masked_if_masked", "masked_if_passing"):
        assert pair[key] == pytest.approx(gaussian_masked("quest", 2), rel=0.1)


def test_shares_are_by_step_and_kind() -> None:
    result = history(weights(0), weights(1), weights(2))
    assert [point["step"] for point in result["checkpoints"]] == [0, 1, 2]
    for point in result["checkpoints"]:
        both = (2 * point["by_kind"]["q"] + point["by_kind"]["down"]) / 3
        assert point["masked"] == pytest.approx(both, rel=1e-12)
    pairs = result["persistence"]["pairs"]
    assert ["joint" in pair for pair in pairs] == [True, True]


def test_only_the_first_and_the_last_joint_histogram_are_kept() -> None:
    pairs = history(*(weights(seed) for seed in range(4)))["persistence"]["pairs"]
    assert ["joint" in pair for pair in pairs] == [True, False, True]


def test_one_checkpoint_says_how_to_keep_more() -> None:
    result = history(weights(0))
    assert len(result["checkpoints"]) == 1
    assert "pairs" not in result["persistence"]
    reason = result["persistence"]["skipped"]
    assert "kept 1 checkpoint;" in reason
    assert "train.keep_checkpoints" in reason
    assert "train.checkpoint_every" in reason


def test_a_chance_given_something_that_never_happened_is_unknown() -> None:
    flat = {NAMES[0]: torch.ones(4, 128) * torch.tensor([1.0, -1.0]).repeat(64)}
    (pair,) = mask_history(enumerate([flat, flat]), 2, "quest-noht", 4, show_progress=False)["persistence"]["pairs"]
    assert pair["masked_if_masked"] is None
    assert pair["masked_if_passing"] == 0.0


def test_rows_of_zeros_are_looked_at_without_harm() -> None:
    dead = weights(0) | {NAMES[0]: torch.zeros(4, 128)}
    result = history(dead, weights(0) | {NAMES[0]: torch.zeros(4, 128)})
    assert result["persistence"]["pairs"][0]["masked_if_masked"] == 1.0
