"""The solver against SciPy's, and the law's derivatives against differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from questlm.scaling import Run, published_runs
from questlm.scaling.fit import DELTA, law_bounds, law_starts
from questlm.scaling.law import Data, by_group, groups_of, law_model
from questlm.scaling.solve import Array, Model, huber, minimize
from questlm.scaling.variants import VARIANTS

RUNS = published_runs()
GROUPS, DATA = groups_of(RUNS), Data.of(RUNS)
MODEL = law_model(DATA, by_group(RUNS, GROUPS))
BOUNDS = law_bounds(DATA, len(GROUPS))
EVERY = np.ones((1, len(RUNS)))


def residuals(parameters: Array) -> Array:
    return MODEL(parameters[None], False)[0][0]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(1e-4, 1.0))
def test_scipys_huber_with_f_scale_is_ours(values: list[float], delta: float) -> None:
    errors = np.array(values)
    fit = least_squares(lambda x: errors + 0 * x[0], [0.0], loss="huber", f_scale=delta)
    assert fit.cost == pytest.approx(huber(errors, delta).sum(), rel=1e-9, abs=1e-15)


def test_huber_is_half_the_square_within_delta_and_of_slope_delta_beyond() -> None:
    assert huber(np.array([-0.5, 1.0, 2.0, -3.0]), 1.0).tolist() == [0.125, 0.5, 1.5, 2.5]


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_jacobian_is_the_derivative(variant: str, seed: int) -> None:
    form = VARIANTS[variant](RUNS, DATA)
    point = form.starts(1, np.random.default_rng(seed))[0]
    jacobian = form.model(point[None], True)[1][0]
    steps = 1e-6 * np.eye(len(point))
    ahead, behind = form.model(point + steps, False)[0], form.model(point - steps, False)[0]
    assert np.allclose(jacobian, (ahead - behind).T / 2e-6, atol=1e-7)


def test_no_start_of_scipys_ends_lower_nor_does_it_improve_on_our_optimum() -> None:
    starts = law_starts(DATA, len(GROUPS), 8, np.random.default_rng(0))
    ours = minimize(MODEL, starts, EVERY, DELTA, BOUNDS)
    best = ours.parameters[ours.loss.argmin()]
    for start in (*starts, best):
        fit = least_squares(
            residuals, start, lambda x: MODEL(x[None], True)[1][0], loss="huber", f_scale=DELTA, bounds=(
                BOUNDS[0] - 1e-6, BOUNDS[1] + 1e-6), max_nfev=100,
        )  # fmt: skip
        assert fit.cost >= ours.loss.min() * (1 - 1e-5)


def test_every_start_reaches_the_same_optimum() -> None:
    starts = law_starts(DATA, len(GROUPS), 24, np.random.default_rng(1))
    loss = minimize(MODEL, starts, EVERY, DELTA, BOUNDS).loss
    assert loss.max() == pytest.approx(loss.min(), rel=1e-3)


def test_a_row_of_no_weight_is_not_there(make_runs: Callable[..., list[Run]]) -> None:
    runs = make_runs(noise=0.003)
    data, groups = Data.of(runs), groups_of(runs)
    spoilt = Data(data.log_n, data.log_d, data.log_loss + np.eye(len(runs))[7], data.log_n0, data.log_d0)
    weights = 1 - np.eye(len(runs))[7][None]
    start, bounds = law_starts(data, len(groups), 1, np.random.default_rng(0)), law_bounds(data, len(groups))
    fits = [
        minimize(law_model(part, by_group(runs, groups)), start, weights, DELTA, bounds).parameters
        for part in (data, spoilt)
    ]
    assert np.array_equal(*fits)


def line(parameters: Array, derivatives: bool) -> tuple[Array, Array]:
    """Residuals of y = 2 x at x = 1, 2, 3, by slope and an intercept."""
    x = np.array([1.0, 2.0, 3.0])
    values = parameters[:, :1] * x + parameters[:, 1:] - 2 * x
    return values, np.broadcast_to(np.stack([x, np.ones(3)], axis=1), (len(parameters), 3, 2))


@pytest.mark.parametrize("delta", [1e-3, 10.0])
def test_what_is_held_stays_and_bounds_are_kept(delta: float) -> None:
    model: Model = line
    wide = (np.array([-9.0, -9.0]), np.array([9.0, 9.0]))
    start = np.array([[0.0, 1.0], [0.0, 1.0]])
    held = np.array([[False, True], [False, False]])
    solution = minimize(model, start, np.ones((1, 3)), delta, wide, held)
    assert solution.parameters[0, 1] == 1.0
    assert np.allclose(solution.parameters[1], [2.0, 0.0], atol=1e-4)
    narrow = minimize(model, start, np.ones((1, 3)), delta, (np.array([-9.0, 0.5]), np.array([9.0, 9.0])))
    assert narrow.parameters[:, 1].tolist() == [0.5, 0.5]
