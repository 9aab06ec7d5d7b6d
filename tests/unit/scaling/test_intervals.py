"""95 % intervals hold the truth in about 95 % of 200 noisy repetitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from questlm.scaling import Run
from questlm.scaling.fit import DELTA, law_bounds
from questlm.scaling.intervals import profile_rise
from questlm.scaling.law import LAW, Data, by_group, groups_of, law_model
from questlm.scaling.solve import Array, Model, minimize

DRAWS, NOISE = 200, 0.003
NAMED = (1, 3, 4, LAW, LAW + 1)  # log alpha, log beta, log E and two efficiencies


def repeated(runs: list[Run], losses: Array) -> Model:
    """The law of `runs` with the log losses of one repetition (repetitions, rows): a last parameter says which."""
    data, groups = Data.of(runs), groups_of(runs)
    law = law_model(data, by_group(runs, groups))

    def model(parameters: Array, derivatives: bool) -> tuple[Array, Array]:
        residuals, jacobian = law(parameters[:, :-1], derivatives)
        residuals = residuals + data.log_loss - losses[parameters[:, -1].astype(int)]
        return residuals, np.pad(jacobian, ((0, 0), (0, 0), (0, 1))) if derivatives else residuals

    return model


def test_profile_intervals_cover_what_they_should(make_runs: Callable[..., list[Run]]) -> None:
    """An interval holds the truth exactly where holding the parameter at it raises the loss by at most the rise."""
    runs = make_runs()
    data = Data.of(runs)
    truth = np.array([0.0, np.log(0.34), 0.0, np.log(0.28), np.log(1.7), np.log(0.2), np.log(0.7)])
    truth[[0, 2]] = np.log(400) - 0.34 * data.log_n0, np.log(410) - 0.28 * data.log_d0
    noise = NOISE * np.random.default_rng(0).standard_normal((DRAWS, len(runs)))
    model = repeated(runs, data.log_loss + noise)
    low, high = law_bounds(data, 2)
    bounds, every = (np.append(low, 0.0), np.append(high, DRAWS)), np.ones((1, len(runs)))

    start = np.column_stack([np.tile(truth, (DRAWS, 1)), np.arange(DRAWS)])
    held = np.zeros(start.shape, dtype=bool)
    held[:, -1] = True
    best = minimize(model, start, every, DELTA, bounds, held, first_delta=16 * DELTA)
    rises = np.array([profile_rise(errors, LAW + 2, DELTA) for errors in model(best.parameters, False)[0]])

    covered = {}
    for parameter in NAMED:
        start = best.parameters.copy()
        start[:, parameter] = truth[parameter]
        held[:] = False
        held[:, [parameter, -1]] = True
        forced = minimize(model, start, every, DELTA, bounds, held, first_delta=16 * DELTA)
        covered[parameter] = float(np.mean(forced.loss - best.loss <= rises))
    print(covered)
    # Three binomial standard deviations about the nominal share, for each; less, for their mean.
    assert all(0.904 <= share <= 0.996 for share in covered.values()), covered
    assert 0.92 <= np.mean(list(covered.values())) <= 0.98, covered
