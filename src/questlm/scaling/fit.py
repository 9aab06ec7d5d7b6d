"""Fit the scaling law to runs, with intervals and with warnings where the runs do not determine it.

    fit = fit_law(read_runs([Path("runs/")]))
    fit.predict(1e9, 1e11, "quest/w4a4/int4")

The sum over runs of the Huber loss (delta 1e-3) of log L_predicted - log L is minimised from many starts, and the best
is kept. See `law` for the formula, `solve` for the descent, `intervals` for what the intervals mean.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from questlm.errors import DataError
from questlm.scaling.intervals import bootstrap_weights, profile_intervals, profile_rise
from questlm.scaling.law import LAW, Data, by_group, groups_of, law_model
from questlm.scaling.result import LAW_PARAMETERS, Estimate, LawFit, Residual
from questlm.scaling.runs import BASELINE, Run
from questlm.scaling.solve import Array, Model, minimize

__all__ = ["DELTA", "Estimate", "LawFit", "Residual", "check_runs", "fit_law", "law_bounds", "law_starts", "silent"]

DELTA = 1e-3
"""Of the Huber loss, in units of log loss."""

_STARTS = 32
_DRAWS_AT_ONCE = 25
_PROFILE_FITS = 40  # about as many as all profiles take, for the progress shown
_LEAST = 12.0  # a term exp(-12) of the loss is none; an efficiency outside exp(-12) .. exp(12) is no efficiency
_ALPHAS = (1e-3, 5.0)
_DESCRIBES = 0.05  # of the loss; laws of losses miss by less than one per cent

Update = Callable[[float, str], None]


def silent(completed: float, info: str) -> None:
    """Ignore the progress: an `update` for callers who do not show it."""


def fit_law(runs: Sequence[Run], draws: int = 200, seed: int = 0, update: Update = silent) -> LawFit:
    """Fit the law to runs, with one efficiency for each group; that of BF16 is 1 by definition.

    The order of the runs changes nothing.

    Args:
        runs: see `check_runs` for what they must be.
        draws: bootstrap samples.
        seed: of the starts and the bootstrap.
        update: called with the share that is done, from 0 to 1, and what is being done.

    Raises:
        DataError: the runs cannot be fitted.
    """
    check_runs(runs)
    runs = sorted(runs, key=lambda run: (run.group, run.parameters, run.tokens, run.seed or 0, run.loss))
    groups, data = groups_of(runs), Data.of(runs)
    model, bounds = law_model(data, by_group(runs, groups)), law_bounds(data, len(groups))
    every_run = np.ones((1, len(runs)))

    update(0.0, "fitting")
    solution = minimize(
        model, law_starts(data, len(groups), _STARTS, np.random.default_rng(seed)), every_run, DELTA, bounds
    )
    winner = int(solution.loss.argmin())
    best, lowest = solution.parameters[winner], float(solution.loss[winner])
    residuals = model(best[None], False)[0][0]

    ends = _profiles(runs, groups, data, best, lowest, profile_rise(residuals, len(best), DELTA), update)
    samples = _bootstrap(runs, model, best, bounds, draws, seed, update)
    drawn = _named(samples, data, groups, bounds)
    values = {name: float(column[0]) for name, column in _named(best[None], data, groups, bounds).items()}
    estimates = {name: Estimate(value, *ends[name]) for name, value in values.items()}
    fit = LawFit(
        **{name: values[name] for name in LAW_PARAMETERS},
        eff={group: estimates[group] for group in groups},
        intervals={name: estimates[name] for name in LAW_PARAMETERS},
        draws=drawn,
        groups=dict(sorted(Counter(run.group for run in runs).items())),
        range=_range(runs),
        residuals=[
            Residual(run.group, run.parameters, run.tokens, run.loss, float(residual), run.source)
            for run, residual in zip(runs, residuals, strict=True)
        ],
        rms_log_residual=float(np.sqrt(np.mean(residuals**2))),
        n_runs=len(runs),
        warnings=[],
    )
    return replace(fit, warnings=_warnings(fit, runs))


def law_bounds(data: Data, efficiencies: int) -> tuple[Array, Array]:
    """Return the lowest and highest value of each fitted parameter, (p,) each: wide, relative to the mean loss."""
    level, (least, most) = float(data.log_loss.mean()), np.log(_ALPHAS)
    low = [level - _LEAST, least, level - _LEAST, least, level - _LEAST]
    high = [level + 1, most, level + 1, most, float(data.log_loss.max())]
    return np.array(low + [-_LEAST] * efficiencies), np.array(high + [_LEAST] * efficiencies)


def law_starts(data: Data, efficiencies: int, count: int, rng: np.random.Generator) -> Array:
    """Draw starting points of the fit, (count, p).

    The mean loss is divided at random among the law's three terms; exponents and efficiencies are random.
    """
    shares = np.log(rng.dirichlet([1, 1, 1], count) + 0.01) + data.log_loss.mean()
    exponents = rng.uniform(np.log(0.05), 0, (count, 2))
    eff = rng.uniform(-3, 0, (count, efficiencies))
    return np.column_stack([shares[:, 0], exponents[:, 0], shares[:, 1], exponents[:, 1], shares[:, 2], eff])


# -- intervals ---------------------------------------------------------------------------------------------------------


def _profiles(
    runs: Sequence[Run], groups: Sequence[str], data: Data, best: Array, lowest: float, rise: float, update: Update
) -> dict[str, tuple[float, float]]:
    """Ends of the profile interval of each parameter by name; 0 or infinity where a side is open.

    log A = a + alpha n0 is no parameter of the fit, so A and B are profiled in one that is not centred.
    """
    efficiency = by_group(runs, groups)
    raw = Data(data.log_n + data.log_n0, data.log_d + data.log_d0, data.log_loss, 0.0, 0.0)
    shift = np.zeros_like(best)
    shift[[0, 2]] = np.exp(best[1]) * data.log_n0, np.exp(best[3]) * data.log_d0
    centred = {1: "alpha", 3: "beta", 4: "E"} | {LAW + place: group for place, group in enumerate(groups)}
    ends: dict[str, tuple[float, float]] = {}
    shown = itertools.count()
    for part, start, names in ((data, best, centred), (raw, best + shift, {0: "A", 2: "B"})):
        low, high = law_bounds(data, len(groups))
        if part is raw:
            high[[0, 2]] += np.exp(high[[1, 3]]) * (data.log_n0, data.log_d0)
        found = profile_intervals(
            law_model(part, efficiency), start, lowest, rise, list(names), np.ones((1, len(runs))), DELTA, (low, high),
            lambda: update(min(0.1 + 0.3 * next(shown) / _PROFILE_FITS, 0.4), "profile intervals"),
        )  # fmt: skip
        with np.errstate(over="ignore"):
            ends |= {name: (float(a), float(b)) for name, (a, b) in zip(names.values(), np.exp(found), strict=True)}
    return ends


def _bootstrap(
    runs: Sequence[Run], model: Model, best: Array, bounds: tuple[Array, Array], draws: int, seed: int, update: Update
) -> Array:
    """The fits of the bootstrap samples, (draws, p)."""
    weights = bootstrap_weights([run.group for run in runs], draws, np.random.default_rng([seed, 1]))
    samples = []
    for first in range(0, draws, _DRAWS_AT_ONCE):
        update(0.4 + 0.6 * first / draws, f"bootstrap {first} of {draws}")
        part = weights[first : first + _DRAWS_AT_ONCE]
        samples.append(
            minimize(
                model, np.repeat(best[None], len(part), axis=0), part, DELTA, bounds, first_delta=16 * DELTA
            ).parameters
        )
    return np.concatenate(samples)


def _named(parameters: Array, data: Data, groups: Sequence[str], bounds: tuple[Array, Array]) -> dict[str, Array]:
    """Fitted parameters (problems, p) as those of the law, by name. An E at its lower bound is none."""
    a, log_alpha, b, log_beta, e = parameters[:, :LAW].T
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    return {
        "alpha": alpha,
        "A": np.exp(a + alpha * data.log_n0),
        "beta": beta,
        "B": np.exp(b + beta * data.log_d0),
        "E": np.where(e <= bounds[0][4] + 1e-9, 0.0, np.exp(e)),
        **{group: np.exp(parameters[:, LAW + place]) for place, group in enumerate(groups)},
    }


def _range(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    columns = {
        "parameters": [float(run.parameters) for run in runs],
        "tokens": [float(run.tokens) for run in runs],
        "tokens_per_parameter": [run.tokens / run.parameters for run in runs],
    }
    return {name: (min(values), max(values)) for name, values in columns.items()}


# -- what can be fitted, and what to doubt -----------------------------------------------------------------------------


def check_runs(runs: Sequence[Run]) -> None:
    """Refuse runs that the law cannot be fitted to.

    Raises:
        DataError: no BF16 runs, too few runs, one size or one number of tokens only, or a run that is there twice.
    """
    seen: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        others = seen.setdefault((run.group, run.parameters, run.tokens), [])
        same = next((other for other in others if _is_repeat(run, other)), None)
        others.append(run)
        if same is not None:
            what = f"with loss {run.loss:g}" if run.loss == same.loss else f"with losses {same.loss:g} and {run.loss:g}"
            where = " and ".join(dict.fromkeys(filter(None, (same.source, run.source))))
            raise DataError(
                f"{run.label} is there twice, {what}{f' (in {where})' if where else ''}; keep one of them, or give "
                f"repeats different seeds"
            )
    groups = groups_of(runs)
    if all(run.group != BASELINE for run in runs):
        raise DataError(
            f"none of the {len(runs)} runs is a BF16 one, which efficiencies are measured against (eff of BF16 is 1); "
            f"add runs of `quest train --bits 16`, or rows with w_bits 16, a_bits 16 and format 'bf16'"
        )
    needed = LAW + len(groups) + 1
    if len(runs) < needed:
        raise DataError(
            f"{len(runs)} runs are too few for a law of {needed - 1} parameters (5, and one for each of "
            f"{len(groups)} groups); it takes at least {needed}"
        )
    for what, name in (("parameters", "sizes"), ("tokens", "numbers of tokens")):
        if len({getattr(run, what) for run in runs}) == 1:
            raise DataError(
                f"all runs have {getattr(runs[0], what):,} {what}, so how the loss depends on them cannot be fitted; "
                f"add runs of other {name}"
            )


def _is_repeat(run: Run, other: Run) -> bool:
    """Whether a run of the same group, size and tokens is no independent observation. An unknown seed may be any."""
    if run.seed is None or other.seed is None:
        return run.loss == other.loss
    return run.seed == other.seed


def _warnings(fit: LawFit, runs: Sequence[Run]) -> list[str]:
    validations = {run.validation for run in runs if run.validation}
    warnings = []
    if len(validations) > 1:
        warnings.append(
            f"the runs were validated on {len(validations)} different texts, so their losses do not compare; fit "
            f"runs of one text"
        )
    warnings += [
        f"{'the BF16 baseline' if group == BASELINE else f'eff of {group}'} rests on one run, whose own error is in "
        f"no bootstrap interval"
        for group, count in fit.groups.items()
        if count == 1
    ]
    if fit.rms_log_residual > _DESCRIBES:
        warnings.append(
            f"the law does not describe these runs: its losses are off by {100 * fit.rms_log_residual:.0f} %, so "
            f"neither its parameters nor its predictions mean anything"
        )
    warnings += [
        f"{name} lies at the end of the values that are tried, {value:.3g}"
        for name, value in (("alpha", fit.alpha), ("beta", fit.beta))
        if not _ALPHAS[0] * 1.01 < value < _ALPHAS[1] / 1.01
    ]
    named = {name: fit.intervals[name] for name in ("alpha", "beta", "E")}
    named |= {f"eff of {group}": estimate for group, estimate in fit.eff.items()}
    return warnings + [_unidentified(name, e) for name, e in named.items() if not e.identified]


def _unidentified(name: str, estimate: Estimate) -> str:
    low, high = f"{estimate.low:.3g}", f"{estimate.high:.3g}"
    fits = "any value at all" if estimate.low == 0 and estimate.high == np.inf else (
        f"anything up to {high}" if estimate.low == 0 else f"anything from {low} on"
    )  # fmt: skip
    return (
        f"{name} is not identified by these runs: {fits} fits them as well as the {estimate.value:.3g} given, so do "
        f"not read it as a finding, nor trust the law far outside the range of its runs"
    )
