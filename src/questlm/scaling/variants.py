"""Other forms of the law, and which of them predicts runs that it was not fitted to.

    eff by group         eff(P) free for each group: the law of `law`
    eff_w x eff_a        eff(P) = eff_w(w) eff_a(a), free for each width of the weights and of the activations
    eff(b), decay        eff_w = eff_a = f with log f(b) = -k exp(-b / g)
    eff(b), saturation   eff_w = eff_a = f with f(b) = 1 - exp(-(b / g)^h)
    eff_w(b) x eff_a(b)  as decay, with a k for weights and a k for activations
    additive             L = A / N^alpha + B / D^beta + E + delta(P)
    additive, N and D    delta(P) times D^q / N^p, as for quantisation after training in "Scaling laws for precision"
                         (arXiv 2411.04330), whose own eff_w and eff_a are saturations with h = 1

Decay: the squared error of an optimal grid falls nearly fourfold with each bit; if -log f is a power of that error, it
decays exponentially in bits. f(16) is 1 in both. The last form holds others: with p = q = 0 it is the one before it,
with p = alpha and q = 0 it is the first, where delta = A (eff^-alpha - 1). So it tells which of the two is nearer.

Every form is fitted like the law itself: Huber loss on log loss, many starts, analytic Jacobian. A form is scored on
runs left out of its fit: single runs (10 folds, dealt so that no group of several runs loses all of them at once), all
runs of one size, all runs of the largest size, and all runs of one pair of widths. Where the runs that are left do not
determine the prediction, such as a free eff of a group that is out, the form has no score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from questlm.errors import DataError
from questlm.scaling.fit import DELTA, check_runs, law_bounds, law_starts, silent
from questlm.scaling.law import LAW, Data, Efficiency, by_group, groups_of, law_model
from questlm.scaling.runs import BASELINE, Run
from questlm.scaling.solve import Array, Model, minimize

__all__ = ["HELD_OUT", "VARIANTS", "Score", "comparable", "compare"]

HELD_OUT = ("run", "size", "largest", "bits")
"""What is left out of a fit and then predicted."""

_FOLDS = 10
_DEALS = 3  # times that runs are dealt into folds anew
_STARTS = 24
_STARTS_A_FOLD = 6  # beside the optimum of all runs
_INTEGER = re.compile(r"int[1-8]")


Rows = NDArray[np.bool_]


class Form(NamedTuple):
    """A variant of the law for given runs.

    `known` gets which runs are fitted, (rows,) bool, and returns which runs' eff or delta such a fit can tell.
    """

    model: Model
    bounds: tuple[Array, Array]
    starts: Callable[[int, np.random.Generator], Array]
    known: Callable[[Rows], Rows]


@dataclass(frozen=True)
class Score:
    """The errors of one variant: root mean squares of log L_predicted - log L, or None where it cannot predict.

    Attributes:
        name: of the variant.
        parameters: how many numbers it fits.
        fitted: error on the runs it was fitted to, all of them.
        rest: the constant E of that fit, in nats.
        held_out: error on runs left out, by what was left out (`HELD_OUT`).
    """

    name: str
    parameters: int
    fitted: float
    rest: float
    held_out: dict[str, float | None]


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Return the runs whose widths can be compared: BF16, and integer formats of the method with most runs.

    Raises:
        DataError: there are fewer than two widths.
    """
    integer = [run for run in runs if run.group != BASELINE and _INTEGER.fullmatch(run.format)]
    counts = Counter(run.method for run in integer)
    method = max(sorted(counts), key=lambda name: counts[name], default=None)
    chosen = [run for run in runs if run.group == BASELINE or (run in integer and run.method == method)]
    if len(groups_of(chosen)) < 2:
        raise DataError(
            "variants of the law are compared on runs of one method in at least two widths of integers, beside BF16; "
            "these runs have fewer"
        )
    check_runs(chosen)
    return chosen


def compare(runs: Sequence[Run], seed: int = 0, update: Callable[[float, str], None] = silent) -> list[Score]:
    """Score every variant on runs that are `comparable`.

    Args:
        runs: from `comparable`.
        seed: of the starts, and of the dealing of runs into folds.
        update: told how far it is, from 0 to 1, and what it is doing.
    """
    runs = sorted(runs, key=lambda run: (run.group, run.parameters, run.tokens, run.seed or 0, run.loss))
    folds = _folds(runs, np.random.default_rng(seed))
    scores = []
    for number, (name, build) in enumerate(VARIANTS.items()):
        update(number / len(VARIANTS), name)
        scores.append(_score(name, build(runs, Data.of(runs)), folds, np.random.default_rng([seed, number])))
    return scores


# -- scoring -----------------------------------------------------------------------------------------------------------


def _folds(runs: Sequence[Run], rng: np.random.Generator) -> dict[str, Rows]:
    """Which runs are left out: (folds, runs) for each of `HELD_OUT`."""
    sizes, widths = sorted({run.parameters for run in runs}), sorted({run.group for run in runs} - {BASELINE})
    names = np.array([run.group for run in runs])
    single = np.array([Counter(names)[name] == 1 for name in names])
    dealt = []
    for _ in range(_DEALS):
        fold = np.empty(len(runs), dtype=int)
        order = rng.permutation(len(runs))
        fold[order[np.argsort(names[order], kind="stable")]] = np.arange(len(runs)) % _FOLDS
        dealt += [(fold == number) & ~single for number in range(_FOLDS)]
    by_size = np.array([[run.parameters == size for run in runs] for size in sizes])
    by_width = np.array([names == width for width in widths])
    return {"run": np.array(dealt), "size": by_size, "largest": by_size[-1:], "bits": by_width}


def _score(name: str, form: Form, folds: dict[str, Rows], rng: np.random.Generator) -> Score:
    rows = folds["run"].shape[1]
    whole = minimize(form.model, form.starts(_STARTS, rng), np.ones((1, rows)), DELTA, form.bounds)
    best = whole.parameters[whole.loss.argmin()]
    residuals = form.model(best[None], False)[0][0]
    held_out = {what: _held_out(form, out, best, rng) for what, out in folds.items()}
    return Score(name, len(best), float(np.sqrt(np.mean(residuals**2))), float(np.exp(best[LAW - 1])), held_out)


def _held_out(form: Form, out: Rows, best: Array, rng: np.random.Generator) -> float | None:
    """Error on the runs left out, over all folds, or None where one of them cannot be predicted."""
    if not all(form.known(~row)[row].all() for row in out):
        return None
    tries = [np.repeat(best[None], len(out), axis=0)]
    tries += [form.starts(len(out), rng) for _ in range(_STARTS_A_FOLD)]
    weights = np.tile(~out, (len(tries), 1)).astype(float)
    solution = minimize(form.model, np.concatenate(tries), weights, DELTA, form.bounds)
    winners = solution.loss.reshape(len(tries), len(out)).argmin(axis=0)
    chosen = solution.parameters.reshape(len(tries), len(out), -1)[winners, np.arange(len(out))]
    errors = form.model(chosen, False)[0][out]
    return float(np.sqrt(np.mean(errors**2)))


# -- efficiencies ------------------------------------------------------------------------------------------------------


def _with_efficiency(
    data: Data, efficiency: Efficiency, count: int, known: Callable[[Rows], Rows],
    bounds: tuple[float, float] = (-12.0, 12.0), start: tuple[float, float] = (-3.0, 0.0),
) -> Form:  # fmt: skip
    low, high = law_bounds(data, count)
    low[LAW:], high[LAW:] = bounds

    def starts(number: int, rng: np.random.Generator) -> Array:
        return np.column_stack([law_starts(data, 0, number, rng), rng.uniform(*start, (number, count))])

    return Form(law_model(data, efficiency), (low, high), starts, known)


def _estimable(design: Array) -> Callable[[Rows], Rows]:
    """Rows of a linear design (rows, k) that lie in the span of the chosen rows."""

    def known(chosen: Rows) -> Rows:
        basis = np.linalg.svd(design[chosen], full_matrices=False)
        span = basis.Vh[basis.S > 1e-9]
        return np.asarray(np.abs(design - design @ span.T @ span).max(axis=1) < 1e-9)

    return known


def _all_known(chosen: Rows) -> Rows:
    return np.ones(len(chosen), dtype=bool)


def _membership(runs: Sequence[Run]) -> Array:
    return np.array([[run.group == group for group in groups_of(runs)] for run in runs], dtype=float)


def _by_group(runs: Sequence[Run], data: Data) -> Form:
    groups = groups_of(runs)
    return _with_efficiency(data, by_group(runs, groups), len(groups), _estimable(_membership(runs)))


def _apart(runs: Sequence[Run], data: Data) -> Form:
    """log eff = log eff_w(w) + log eff_a(a), linear in its parameters."""
    columns = [[float(run.weight_bits == bits) for run in runs] for bits in _widths(run.weight_bits for run in runs)]
    columns += [[float(run.act_bits == bits) for run in runs] for bits in _widths(run.act_bits for run in runs)]
    design = np.array(columns).T

    def efficiency(parameters: Array) -> tuple[Array, Array]:
        return parameters @ design.T, np.broadcast_to(design, (len(parameters), *design.shape))

    return _with_efficiency(data, efficiency, design.shape[1], _estimable(design))


def _widths(bits: Iterable[int | str]) -> list[int | str]:
    return sorted(set(bits) - {16}, key=str)


def _one_curve(runs: Sequence[Run], data: Data) -> Form:
    return _decay(runs, data, apart=False)


def _two_curves(runs: Sequence[Run], data: Data) -> Form:
    return _decay(runs, data, apart=True)


def _decay(runs: Sequence[Run], data: Data, apart: bool) -> Form:
    """Parameters: log g, then log k (one for both, or one for weights and one for activations)."""
    bits, quantised = _bits(runs)

    def efficiency(parameters: Array) -> tuple[Array, Array]:
        scaled = bits / np.exp(parameters[:, 0, None, None])
        lost = quantised * np.exp(parameters[:, None, 1:] - scaled)  # (problems, rows, 2), of weights and activations
        by_k = -lost if apart else -lost.sum(axis=2, keepdims=True)
        by_g = -(lost * scaled).sum(axis=2, keepdims=True)
        return -lost.sum(axis=2), np.concatenate([by_g, by_k], axis=2)

    # Runs whose weights and activations are alike in width tell the sum of two curves, and not one of them.
    known = _estimable(quantised * np.exp(-bits)) if apart else _all_known
    return _with_efficiency(data, efficiency, 3 if apart else 2, known, (-5.0, 5.0), (-1.0, 2.0))


def _saturation(runs: Sequence[Run], data: Data) -> Form:
    """Parameters: log g and log h."""
    bits, quantised = _bits(runs)

    def efficiency(parameters: Array) -> tuple[Array, Array]:
        log_g, log_h = parameters[:, 0, None, None], parameters[:, 1, None, None]
        power = np.exp(log_h) * (np.log(bits) - log_g)  # z = (bits / g)^h, its logarithm
        z = np.exp(np.clip(power, -30, 5))
        by_log_z = quantised * z / np.expm1(z)
        by_g, by_h = -by_log_z * np.exp(log_h), by_log_z * power
        return (quantised * np.log(-np.expm1(-z))).sum(axis=2), np.stack([by_g.sum(axis=2), by_h.sum(axis=2)], axis=2)

    return _with_efficiency(data, efficiency, 2, _all_known, (-2.0, 3.0), (-0.5, 1.5))


def _bits(runs: Sequence[Run]) -> tuple[Array, Array]:
    """Widths (rows, 2) of weights and activations, and 1 where they are quantised, 0 at 16 bits."""
    bits = np.array([[run.weight_bits, run.act_bits] for run in runs], dtype=float)
    return bits, (bits < 16).astype(float)


# -- additive ----------------------------------------------------------------------------------------------------------


def _additive_constant(runs: Sequence[Run], data: Data) -> Form:
    return _additive(runs, data, powers=False)


def _additive_powers(runs: Sequence[Run], data: Data) -> Form:
    return _additive(runs, data, powers=True)


def _additive(runs: Sequence[Run], data: Data, powers: bool) -> Form:
    """L of the law at eff = 1, plus delta(P) (D / D0)^q / (N / N0)^p. Parameters: the law's, the deltas, p and q."""
    member = _membership(runs)
    count = member.shape[1]
    base = law_model(
        data, lambda parameters: (np.zeros((len(parameters), len(runs))), np.zeros((len(parameters), len(runs), 0)))
    )

    def model(parameters: Array, derivatives: bool) -> tuple[Array, Array]:
        law, jacobian = base(parameters[:, :LAW], derivatives)
        p, q = (parameters[:, i, None] for i in (-2, -1)) if powers else (0.0, 0.0)
        growth = np.exp(q * data.log_d - p * data.log_n) * np.ones_like(law)
        added = (parameters[:, LAW : LAW + count] @ member.T) * growth
        loss = np.exp(law + data.log_loss)
        total = np.maximum(loss + added, 1e-9)  # a delta below -L has no logarithm; so far off, no fit stays
        residuals = np.log(total) - data.log_loss
        if not derivatives:
            return residuals, residuals
        parts = [jacobian * (loss / total)[:, :, None], member * (growth / total)[:, :, None]]
        if powers:
            parts.append(np.stack([-added * data.log_n, added * data.log_d], axis=2) / total[:, :, None])
        return residuals, np.concatenate(parts, axis=2)

    low, high = law_bounds(data, count + 2 * powers)
    most = float(np.exp(data.log_loss.max()))
    low[LAW:], high[LAW:] = -most, most
    low[LAW + count :], high[LAW + count :] = -2, 2

    def starts(number: int, rng: np.random.Generator) -> Array:
        delta, exponents = rng.uniform(0, 1, (number, count)), rng.uniform(-0.3, 0.3, (number, 2 * powers))
        return np.column_stack([law_starts(data, 0, number, rng), delta, exponents])

    return Form(model, (low, high), starts, _estimable(member))


VARIANTS: dict[str, Callable[[Sequence[Run], Data], Form]] = {
    "eff by group": _by_group,
    "eff_w x eff_a": _apart,
    "eff(b), decay": _one_curve,
    "eff(b), saturation": _saturation,
    "eff_w(b) x eff_a(b)": _two_curves,
    "additive": _additive_constant,
    "additive, N and D": _additive_powers,
}
"""Names, and what builds them for given runs."""
