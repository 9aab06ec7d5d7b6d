"""Many small robust fits at once: Levenberg-Marquardt on the Huber loss, batched over problems in NumPy.

The fit of a law is tiny (a hundred rows, a dozen parameters) but is wanted a thousand times: from many starts, for
every bootstrap sample, every point of a likelihood profile, every fold of a cross-validation. All of these are one
batch here, told apart by their start, by the weight of each row (0 leaves a row out, 2 counts it twice) and by which
parameters are held. `scipy.optimize.least_squares(loss="huber")` minimises the same sum; called with delta = 1e-3
from one random start after another it stops short of the optimum from nearly all, and takes longer for each.

The Huber loss of a residual r is r^2 / 2 for |r| <= delta and delta (|r| - delta / 2) beyond. It is minimised by
iteratively reweighted least squares: with row weights min(1, delta / |r|), the weighted squares lie above the loss
and touch it, with equal slope, at the current residuals; so what lowers them lowers the loss. At a delta far below
the residuals the loss is all but |r|, whose kinks catch a descent; so delta starts large, where the loss is plain
least squares, and comes down to its value by halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Model", "Solution", "huber", "minimize"]

Array = NDArray[np.float64]

Model = Callable[[Array, bool], tuple[Array, Array]]
"""Parameters (problems, p), and whether to differentiate -> residuals (problems, rows), Jacobian (..., rows, p)."""

_STALL = 1e-9  # a step that lowers the loss by a smaller share counts as none
_PATIENCE = 3  # such steps in a row, and a problem is solved
_MOST_DAMPING = 1e12


class Solution(NamedTuple):
    """The parameters that were found, (problems, p), and their Huber losses, (problems,)."""

    parameters: Array
    loss: Array


def huber(residuals: Array, delta: float) -> Array:
    """Return the Huber loss of each residual."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))


def minimize(
    model: Model,
    start: Array,
    weights: Array,
    delta: float,
    bounds: tuple[Array, Array],
    held: NDArray[np.bool_] | None = None,
    first_delta: float = 0.1,
    steps: int = 400,
) -> Solution:
    """Minimise sum_i weights_i huber(r_i) for each problem of a batch.

    Args:
        model: computes the residuals, and their Jacobian on request.
        start: (problems, p).
        weights: (problems, rows) or (1, rows), not negative.
        delta: residual beyond which the Huber loss is linear.
        bounds: lowest and highest value of each parameter, (p,) each.
        held: (problems, p), true where a parameter keeps the value it starts with.
        first_delta: the larger delta that the fit begins with. 0.1 lies above the residuals of any sensible start, so
            that the loss is plain least squares there; less is enough from a start that is near the optimum.
        steps: most steps at the last delta (a tenth of them at each before).
    """
    parameters = np.clip(start, *bounds) if held is None else np.where(held, start, np.clip(start, *bounds))
    weights = np.broadcast_to(weights, (len(start), weights.shape[1]))
    held = np.zeros(start.shape, dtype=bool) if held is None else held
    stage = max(delta, first_delta)
    while stage > delta:
        parameters = _descend(model, parameters, weights, stage, bounds, held, max(1, steps // 10)).parameters
        stage = max(delta, stage / 2)
    return _descend(model, parameters, weights, delta, bounds, held, steps)


def _descend(
    model: Model, start: Array, weights: Array, delta: float, bounds: tuple[Array, Array],
    held: NDArray[np.bool_], steps: int,
) -> Solution:  # fmt: skip
    best = start.copy()
    residuals, _ = model(best, False)
    loss = _total(residuals, weights, delta)
    damping = np.full(len(start), 1e-3)
    idle = np.zeros(len(start), dtype=int)
    active = np.arange(len(start))
    for _ in range(steps):
        now = best[active]
        residuals, jacobian = model(now, True)
        step = _step(residuals, jacobian, weights[active], delta, damping[active], now, bounds, held[active])
        tried = np.where(held[active], now, np.clip(now + step, *bounds))
        after = _total(model(tried, False)[0], weights[active], delta)
        before = loss[active]
        better = after < before
        gain = before - after
        best[active[better]] = tried[better]
        loss[active[better]] = after[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-9), damping[active] * 4)
        small = better & (gain <= _STALL * before)
        idle[active] = np.where(small, idle[active] + 1, np.where(better, 0, idle[active]))
        active = active[(idle[active] < _PATIENCE) & (damping[active] < _MOST_DAMPING)]
        if not len(active):
            break
    return Solution(best, loss)


def _total(residuals: Array, weights: Array, delta: float) -> Array:
    total: Array = (weights * huber(residuals, delta)).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def _step(
    residuals: Array, jacobian: Array, weights: Array, delta: float, damping: Array,
    now: Array, bounds: tuple[Array, Array], held: NDArray[np.bool_],
) -> Array:  # fmt: skip
    """The damped step of reweighted least squares. Parameters that are held, or pushed against a bound, stay."""
    row_weights = weights * np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
    weighted = jacobian * row_weights[:, :, None]
    gradient = np.einsum("sip,si->sp", weighted, residuals)
    free = ~(held | ((now <= bounds[0]) & (gradient > 0)) | ((now >= bounds[1]) & (gradient < 0)))
    normal = np.matmul(weighted.transpose(0, 2, 1), jacobian)
    normal = normal * (free[:, :, None] & free[:, None, :])
    diagonal = np.einsum("spp->sp", normal)
    # A parameter that the rows say nothing about has a zero on the diagonal: it stays, and the matrix stays regular.
    floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    places = np.arange(normal.shape[1])
    normal[:, places, places] = diagonal + damping[:, None] * np.maximum(diagonal, floor) + floor
    return -np.linalg.solve(normal, (gradient * free)[:, :, None])[:, :, 0]
