"""Intervals of accuracies against published values, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from questlm.evaluation.accuracy import accuracy, difference


def flags(count: int, right: int) -> np.ndarray:
    return np.arange(count) < right


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = {
        (263, 81): (0.2553, 0.3662),
        (148, 15): (0.0624, 0.1605),
        (20, 0): (0, 0.1611),
        (29, 1): (0.0061, 0.1718),
    }
    for (count, right), (low, high) in published.items():
        found = accuracy(flags(count, right))
        assert found.value == right / count
        assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert accuracy(flags(7, 7))[1:] == pytest.approx((1 - accuracy(flags(7, 0)).high, 1))


def test_a_difference_on_the_same_items_counts_those_that_one_answers_alone() -> None:
    first, second = flags(100, 50), flags(100, 60)
    found = difference(first, second)
    assert found.value == pytest.approx(0.1)
    assert 0.03 < found.low < 0.05 and 0.15 < found.high < 0.17
    back = difference(second, first)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    apart = difference(first, second[::-1])  # as many right, but others
    assert apart.high - apart.low > 2 * (found.high - found.low)
    with pytest.raises(ValueError, match="3 and 4 items are not the same"):
        difference(flags(3, 1), flags(4, 1))


def test_intervals_hold_the_truth_19_times_of_20() -> None:
    draw = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        easy = draw.random(200)
        first, second = easy + 0.2 * draw.random(200) < 0.5, easy + 0.2 * draw.random(200) < 0.6
        low, high = difference(first, second)[1:]
        held.append(low <= 0.1 <= high)
    assert 0.93 < np.mean(held) < 0.98


def test_an_estimate_is_written_in_percent() -> None:
    assert accuracy(flags(263, 81)).text() == "30.8 [25.5, 36.6]"
