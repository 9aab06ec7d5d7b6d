"""How well runs determine a law: bootstrap draws and profile-likelihood intervals.

**Bootstrap.** Runs are drawn again with replacement within each group, as many as the group has; so every sample has
all groups, and what is fitted is the same law. A group of one run is in every sample as it is: its own error is not
seen.

**Profile.** Hold one parameter at a value, fit all others, and see how far the Huber loss S rises over its minimum.
For an M-estimator, 2 (S_held - S) E[psi'] / E[psi^2] is asymptotically chi-squared of one degree (psi is the slope of
the Huber loss; this is the likelihood ratio where the loss is a likelihood, and the tau test of Hampel, Ronchetti,
Rousseeuw and Stahel, "Robust Statistics", 1986, chapter 7, otherwise). Both expectations are taken for Gaussian
errors of standard deviation sigma: the median of the absolute residuals, without the p smallest, which a fit of p
parameters makes small, over 0.6745. F(1, n - p) stands for chi-squared, sigma being an estimate. The interval ends
where the rise reaches the 95 % point. A side on which it never does is open: the runs do not bound the parameter
there, however narrow the bootstrap's spread may be. All of this takes the errors of runs for independent; where the
law is systematically off, intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from questlm.scaling.solve import Array, Model, minimize

__all__ = ["LEVEL", "bootstrap_weights", "profile_intervals", "profile_rise", "residual_scale"]

LEVEL = 0.95
_SMALLEST_SCALE = 1e-6  # losses are not printed finer; keeps noiseless runs from a division by zero
_FIRST_STEP = 0.02  # of a logarithm, doubled until the end of the interval is behind it
_HALVINGS = 10


def bootstrap_weights(groups: Sequence[str], draws: int, rng: np.random.Generator) -> Array:
    """Draw bootstrap samples: how often each run is in each sample, (draws, runs).

    Each group keeps its number of runs in every sample.
    """
    names = np.array(groups)
    weights = np.zeros((draws, len(names)))
    for name in sorted(set(groups)):
        rows = np.flatnonzero(names == name)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return weights


def residual_scale(residuals: Array, parameters: int) -> float:
    """Estimate robustly the standard deviation of the errors from a fit's residuals, (rows,)."""
    from scipy.stats import norm  # takes longer to import than the rest of questlm, and only fits need it

    sizes = np.sort(np.abs(residuals))[min(parameters, len(residuals) - 1) :]
    return max(float(np.median(sizes)) / float(norm.ppf(0.75)), _SMALLEST_SCALE)


def profile_rise(residuals: Array, parameters: int, delta: float) -> float:
    """Return by how much the Huber loss rises over its minimum where a profile interval ends."""
    from scipy.stats import f as f_distribution
    from scipy.stats import norm

    scale = residual_scale(residuals, parameters)
    k = delta / scale
    inside = 2 * norm.cdf(k) - 1
    slope_squared = scale**2 * (inside - 2 * k * norm.pdf(k)) + 2 * delta**2 * norm.sf(k)
    quantile = f_distribution.ppf(LEVEL, 1, max(1, len(residuals) - parameters))
    return float(0.5 * quantile * slope_squared / inside)


def profile_intervals(
    model: Model,
    best: Array,
    lowest_loss: float,
    rise: float,
    which: Sequence[int],
    weights: Array,
    delta: float,
    bounds: tuple[Array, Array],
    update: Callable[[], None] = lambda: None,
) -> Array:
    """Return both ends of the interval of each parameter in `which`, (len(which), 2); infinite where a side is open.

    Args:
        best: the optimum (p,), of loss `lowest_loss`.
        rise: by how much the loss is higher at the ends, see `profile_rise`.
        update: called now and then, to show progress.
    """
    column = np.repeat(np.array(which), 2)  # one problem for each side of each parameter
    side = np.tile([-1.0, 1.0], len(which))
    problems = np.arange(len(column))
    held = np.zeros((len(column), len(best)), dtype=bool)
    held[problems, column] = True
    limit = np.where(side < 0, bounds[0][column], bounds[1][column])

    def above(values: Array, start: Array, first_delta: float) -> tuple[NDArray[np.bool_], Array]:
        start = start.copy()
        start[problems, column] = values
        solution = minimize(model, start, weights, delta, bounds, held, first_delta)
        update()
        return solution.loss > lowest_loss + rise, solution.parameters

    inside = np.clip(best[column], *(bound[column] for bound in bounds))
    outside = inside.copy()
    fitted = np.repeat(best[None], len(column), axis=0)
    found = np.zeros(len(column), dtype=bool)
    step = _FIRST_STEP
    while not np.all(found | (outside == limit)):
        outside = np.where(found, outside, np.clip(outside + side * step, *(bound[column] for bound in bounds)))
        crossed, tried = above(outside, fitted, 16 * delta)
        inside = np.where(found | crossed, inside, outside)
        fitted = np.where((found | crossed)[:, None], fitted, tried)
        found |= crossed
        step *= 2
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        crossed, tried = above(middle, fitted, delta)
        inside, outside = np.where(crossed, inside, middle), np.where(crossed, middle, outside)
        fitted = np.where(crossed[:, None], fitted, tried)
    return np.where(found, outside, side * np.inf).reshape(-1, 2)
