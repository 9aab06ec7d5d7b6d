"""How sure an accuracy is, and a difference of two accuracies on the same questions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "accuracy", "difference", "mean"]

_Z = 1.959963984540054
"""Two-sided 95 % of a normal distribution lie within so many standard deviations."""


class Estimate(NamedTuple):
    """A number with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """In percent, as '31.2 [29.9, 32.5]'."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def accuracy(correct: NDArray[np.bool_]) -> Estimate:
    """Share of `correct` (items,) with the interval of Wilson (1927), which also holds near 0 and 1."""
    count, share = len(correct), float(np.mean(correct))
    shrink = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / shrink
    half = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2) / shrink
    # At 0 and 1 rounding would leave the value outside by a hair.
    return Estimate(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share))


def difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate:
    """Accuracy of `second` minus that of `first` on the same items, with the interval of Bonett and Price (2012).

    Only items that one answers and the other does not tell the two apart, so the interval is narrower than those of the
    two accuracies suggest.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} items are not the same items")
    count = len(first)
    gained, lost = int(np.sum(~first & second)), int(np.sum(first & ~second))
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = _Z * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return Estimate((gained - lost) / count, max(-1.0, up - down - half), min(1.0, up - down + half))


def mean(values: NDArray[np.float64]) -> Estimate | None:
    """Mean of independent values with the interval of a normal distribution; None of fewer than two values."""
    if len(values) < 2:
        return None
    middle, half = float(np.mean(values)), _Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(middle, middle - half, middle + half)
