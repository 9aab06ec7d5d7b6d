"""The fit: known laws are found again, the published figures are met, and doubts are spoken."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from questlm.errors import ConfigError, DataError
from questlm.json_files import canonical_json
from questlm.scaling import LawFit, Run, fit_law, published_runs
from questlm.scaling.fit import DELTA
from questlm.scaling.intervals import bootstrap_weights, profile_intervals, profile_rise, residual_scale
from questlm.scaling.law import Data, by_group, groups_of, law_model
from questlm.scaling.solve import huber, minimize

Make = Callable[..., list[Run]]
PUBLISHED = {1: 0.02, 2: 0.16, 3: 0.43, 4: 0.70, 8: 1.02}


# -- the published runs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bits", PUBLISHED)
def test_the_published_efficiencies_are_met(published_fit: LawFit, bits: int) -> None:
    assert published_fit.eff[f"quest/w{bits}a{bits}/int{bits}"].value == pytest.approx(PUBLISHED[bits], abs=0.02)


@pytest.mark.slow
def test_the_published_runs_do_not_identify_e(published_fit: LawFit) -> None:
    assert published_fit.intervals["E"].low == 0
    (warning,) = published_fit.warnings
    assert warning.startswith("E is not identified")


@pytest.mark.slow
def test_the_published_fit_says_what_it_rests_on(published_fit: LawFit) -> None:
    assert published_fit.n_runs == sum(published_fit.groups.values()) == len(published_fit.residuals) == 58
    assert published_fit.groups["bf16"] == 6
    assert published_fit.range["parameters"] == (30_482_560, 822_151_168)
    assert published_fit.range["tokens"] == (749_993_984, 79_999_795_200)
    residuals = [run.log_residual for run in published_fit.residuals]
    assert published_fit.rms_log_residual == pytest.approx(math.sqrt(np.mean(np.square(residuals))))
    assert published_fit.rms_log_residual < 0.004
    for run in published_fit.residuals:
        predicted = published_fit.predict(run.parameters, run.tokens, run.group)
        assert math.log(predicted / run.loss) == pytest.approx(run.log_residual, abs=1e-4)


def test_values_lie_within_their_intervals_and_draws_about_them(published_fit: LawFit) -> None:
    for name, estimate in (published_fit.intervals | published_fit.eff).items():
        low, high = published_fit.bootstrap_interval(name)
        assert estimate.low <= estimate.value <= estimate.high
        assert low <= estimate.value <= high
        assert published_fit.draws[name].shape == (200,)
    spread = published_fit.predict_draws(1e8, 1e10, "quest/w4a4/int4")
    assert spread.shape == (200,)
    assert spread.min() < published_fit.predict(1e8, 1e10, "quest/w4a4/int4") < spread.max()
    assert published_fit.predict_draws(1e8, 1e10, "bf16").shape == (200,)


def test_a_group_that_was_not_fitted_is_refused_with_the_nearest(published_fit: LawFit) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quest/w4a4/int4'"):
        published_fit.predict(1e8, 1e10, "quest/w4a4/in4")
    with pytest.raises(ConfigError, match="was not fitted to 'lsq"):
        published_fit.predict_draws(1e8, 1e10, "lsq/w4a4/int4")


# -- known laws --------------------------------------------------------------------------------------------------------


def test_runs_without_noise_give_the_law_back(make_runs: Make) -> None:
    fit = fit_law(make_runs(), draws=5)
    found = [fit.alpha, fit.A, fit.beta, fit.B, fit.E, *(estimate.value for estimate in fit.eff.values())]
    assert found == pytest.approx([0.34, 400, 0.28, 410, 1.7, 0.2, 0.7], rel=1e-3)
    assert fit.rms_log_residual < 1e-6
    assert fit.warnings == []


def test_noisy_runs_give_it_nearly_back_and_bound_it(synthetic_fit: LawFit) -> None:
    """How often intervals hold the truth is counted in test_law_coverage."""
    truth = {"alpha": 0.34, "beta": 0.28, "E": 1.7, "quest/w2a2/int2": 0.2, "quest/w4a4/int4": 0.7}
    estimates = synthetic_fit.intervals | synthetic_fit.eff
    for name, value in truth.items():
        assert estimates[name].value == pytest.approx(value, rel=0.05)
    for estimate in estimates.values():
        assert estimate.identified
        assert 1.001 < estimate.high / estimate.low < 2
    assert synthetic_fit.warnings == []


def test_an_outlier_hardly_moves_it(make_runs: Make, synthetic_fit: LawFit) -> None:
    runs = make_runs(noise=0.002)
    runs[20] = replace(runs[20], loss=runs[20].loss * 1.3)
    fit = fit_law(runs, draws=1)
    for group, estimate in fit.eff.items():
        assert estimate.value == pytest.approx(synthetic_fit.eff[group].value, rel=0.03)


def test_the_order_of_runs_changes_nothing(make_runs: Make) -> None:
    runs = make_runs(noise=0.002)
    shuffled = random.Random(3).sample(runs, len(runs))
    assert shuffled != runs
    first, second = (canonical_json(fit_law(part, draws=10).to_json()) for part in (runs, shuffled))
    assert first == second


def test_units_change_a_and_b_only(make_runs: Make, synthetic_fit: LawFit) -> None:
    more = [replace(run, parameters=run.parameters * 1000, tokens=run.tokens * 7) for run in make_runs(noise=0.002)]
    fit = fit_law(more, draws=40)
    assert pytest.approx(synthetic_fit.A * 1000**fit.alpha, rel=1e-4) == fit.A
    assert pytest.approx(synthetic_fit.B * 7**fit.beta, rel=1e-4) == fit.B
    for name in ("alpha", "beta", "E"):
        assert vars(fit.intervals[name]) == pytest.approx(vars(synthetic_fit.intervals[name]), rel=1e-3)
    for group, estimate in synthetic_fit.eff.items():
        assert vars(fit.eff[group]) == pytest.approx(vars(estimate), rel=1e-3)
        assert fit.draws[group] == pytest.approx(synthetic_fit.draws[group], rel=1e-3)


def test_the_seed_moves_the_bootstrap_and_not_the_fit(make_runs: Make, synthetic_fit: LawFit) -> None:
    fit = fit_law(make_runs(noise=0.002), draws=40, seed=1)
    assert fit.alpha == pytest.approx(synthetic_fit.alpha, rel=1e-4)
    assert not np.allclose(fit.draws["alpha"], synthetic_fit.draws["alpha"], rtol=1e-6)


def test_progress_goes_from_nothing_to_all(make_runs: Make) -> None:
    seen: list[float] = []
    fit_law(make_runs(noise=0.002), draws=60, update=lambda completed, info: seen.append(completed))
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert 0.7 < seen[-1] <= 1


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_a_profile_interval_ends_where_the_loss_has_risen_enough(make_runs: Make) -> None:
    runs = make_runs(noise=0.002)
    data, groups = Data.of(runs), groups_of(runs)
    model, bounds = law_model(data, by_group(runs, groups)), (np.full(7, -30.0), np.full(7, 30.0))
    start = np.array([[-1.0, -1.0, -1.0, -1.0, 0.0, -1.0, -0.4]])
    every = np.ones((1, len(runs)))
    best = minimize(model, start, every, DELTA, bounds)
    rise = profile_rise(model(best.parameters, False)[0][0], 7, DELTA)
    ends = profile_intervals(model, best.parameters[0], best.loss[0], rise, [1, 6], every, DELTA, bounds)
    for parameter, sides in zip((1, 6), ends, strict=True):
        assert sides[0] < best.parameters[0, parameter] < sides[1]
        for end in sides:
            fixed, held = best.parameters.copy(), np.zeros((1, 7), dtype=bool)
            fixed[0, parameter], held[0, parameter] = end, True
            loss = minimize(model, fixed, every, DELTA, bounds, held).loss[0]
            assert loss - best.loss[0] == pytest.approx(rise, rel=0.05)


def test_samples_keep_every_group_as_large_as_it_is() -> None:
    groups = ["a"] * 5 + ["b"] * 2 + ["c"]
    weights = bootstrap_weights(groups, 50, np.random.default_rng(0))
    assert (weights[:, :5].sum(axis=1) == 5).all()
    assert (weights[:, 5:7].sum(axis=1) == 2).all()
    assert (weights[:, 7] == 1).all()
    assert weights.std(axis=0)[:7].min() > 0


def test_the_scale_is_that_of_gaussian_errors_and_blind_to_outliers() -> None:
    errors = 0.01 * np.random.default_rng(0).standard_normal(20_001)
    errors[:100] = 5.0
    assert residual_scale(errors, 0) == pytest.approx(0.01, rel=0.03)


def test_the_rise_is_that_of_least_squares_where_delta_is_large() -> None:
    errors = np.random.default_rng(0).standard_normal(1000)
    assert profile_rise(errors, 0, 100.0) == pytest.approx(0.5 * 3.85 * residual_scale(errors, 0) ** 2, rel=0.01)
    assert huber(errors, 100.0).sum() == pytest.approx(0.5 * (errors**2).sum())


# -- doubts ------------------------------------------------------------------------------------------------------------


def test_a_group_of_one_run_is_named(make_runs: Make) -> None:
    runs = [run for run in make_runs(noise=0.002) if run.weight_bits != 2]
    fit = fit_law([*runs, Run(10_000_000, 10**9, 1, 1, "int1", "quest", 4.0)], draws=5)
    assert any(w.startswith("eff of quest/w1a1/int1 rests on one run") for w in fit.warnings)
    assert np.ptp(fit.draws["quest/w1a1/int1"]) > 0  # by way of the other parameters


def test_an_efficiency_that_the_runs_do_not_bound_is_named(make_runs: Make) -> None:
    """At a loss of E, N eff may as well be infinite."""
    runs = [run for run in make_runs(noise=0.002) if run.weight_bits != 2]
    fit = fit_law(
        [*runs, Run(10**9, 10**12, 2, 2, "int2", "quest", 1.7), Run(10**9, 10**11, 2, 2, "int2", "quest", 1.9)], draws=5
    )
    estimate = fit.eff["quest/w2a2/int2"]
    assert estimate.high == math.inf
    assert any("eff of quest/w2a2/int2 is not identified" in warning for warning in fit.warnings)
    assert fit.to_json()["eff"]["quest/w2a2/int2"]["high"] is None


def test_losses_on_different_texts_are_named(make_runs: Make) -> None:
    runs = make_runs(noise=0.002)
    runs = [replace(run, validation="ab"[number % 2]) for number, run in enumerate(runs)]
    assert any("validated on 2 different texts" in warning for warning in fit_law(runs, draws=2).warnings)


def test_repeats_with_different_seeds_are_fine(make_runs: Make) -> None:
    runs = make_runs(noise=0.002)
    repeated = [replace(run, seed=seed) for run in runs[:10] for seed in (0, 1)] + runs[10:]
    assert fit_law(repeated, draws=2).n_runs == 58


# -- runs that cannot be fitted ----------------------------------------------------------------------------------------


def _twice(runs: list[Run], **changes: Any) -> list[Run]:
    return [*runs, replace(runs[3], **changes)]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda runs: _twice(runs), "is there twice, with loss"),
        (lambda runs: _twice(runs, seed=7), "seed 7 is there twice, with loss"),  # the other's seed is not known
        (lambda runs: [replace(run, seed=1) for run in _twice(runs, loss=9.0)], "twice, with losses .* and 9"),
        (lambda runs: [run for run in runs if run.weight_bits != 16], "none of the 32 runs is a BF16 one"),
        (lambda runs: runs[:7], "7 runs are too few for a law of 7 parameters"),
        (lambda runs: [], "none of the 0 runs"),
        (
            lambda runs: [replace(run, parameters=5, tokens=i + 1) for i, run in enumerate(runs)],
            "all runs have 5 param",
        ),
        (
            lambda runs: [replace(run, tokens=9, parameters=i + 1) for i, run in enumerate(runs)],
            "all runs have 9 tokens",
        ),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused(spoil: Any, expected: str, make_runs: Make) -> None:
    with pytest.raises(DataError, match=expected):
        fit_law(spoil(make_runs()))


def test_a_duplicate_is_named_with_where_it_came_from(make_runs: Make) -> None:
    first = replace(make_runs()[4], source="a.json")
    with pytest.raises(DataError, match=r"N = 10,000,000 and D = 300,000,000 .*in a.json and runs/b.*different seeds"):
        fit_law([*make_runs()[:4], first, replace(first, source="runs/b")])


def test_the_published_runs_come_with_the_package() -> None:
    runs = published_runs()
    assert len(runs) == 58
    assert {run.group for run in runs} == {"bf16", "quest/w4a16/int4"} | {
        f"quest/w{b}a{b}/int{b}" for b in (1, 2, 3, 4, 8)
    }


@pytest.mark.slow
def test_losses_without_any_law_are_fitted_with_warnings(make_runs: Make) -> None:
    draw = np.random.default_rng(0)
    nonsense = [replace(run, loss=float(np.exp(draw.normal(0, 4)))) for run in make_runs()[:20]]
    fit = fit_law(nonsense, draws=2)
    assert len(fit.warnings) >= 3
    assert math.isfinite(fit.predict(1e6, 1e9, "bf16"))
    canonical_json(fit.to_json())  # every number finite
