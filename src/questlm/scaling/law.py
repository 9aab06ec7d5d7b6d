"""The scaling law in numbers: predictions and their derivatives, batched over parameter vectors.

    L(N, D, P) = A / (N eff(P))^alpha + B / D^beta + E                                        (QuEST, arXiv 2502.05003)

L is the loss in nats a token, N the non-embedding parameters, D the tokens, P the precision (method, widths, format):
a model of N parameters in precision P is worth one of N eff(P) in BF16. All parameters are positive, so the fit runs
on their logarithms. With a = log A - alpha n0 and b = log B - beta d0, where n0 and d0 are the means of log N and log D
over the runs, the law is a sum of three exponentials,

    L = exp(u) + exp(v) + exp(e),   u = a - alpha (log N - n0 + log eff),   v = b - beta (log D - d0),   e = log E,

whose derivatives by u, v and e, divided by L, are the three terms' shares of the loss; everything else is the chain
rule. The centring takes out most of the correlation of log A with alpha, and makes the fit blind to the units of N and
D: counting in thousands moves n0, A and B, and nothing else.

The order of a parameter vector is (a, log alpha, b, log beta, e, and what the efficiency needs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from questlm.scaling.runs import BASELINE, Run
from questlm.scaling.solve import Array, Model

__all__ = ["LAW", "Data", "Efficiency", "by_group", "groups_of", "law_model"]

LAW = 5
"""Parameters of the law without its efficiencies: a, log alpha, b, log beta, e."""

Efficiency = Callable[[Array], tuple[Array, Array]]
"""Parameters (problems, k) -> log eff (problems, rows) and its Jacobian (problems, rows, k)."""


@dataclass(frozen=True)
class Data:
    """The runs as arrays (rows,): log N - log_n0, log D - log_d0 and the log of the loss."""

    log_n: Array
    log_d: Array
    log_loss: Array
    log_n0: float
    log_d0: float

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Data:
        """Make the arrays, centred on the means of log N and log D."""
        log_n, log_d = np.log([float(run.parameters) for run in runs]), np.log([float(run.tokens) for run in runs])
        log_n0, log_d0 = float(log_n.mean()), float(log_d.mean())
        return cls(log_n - log_n0, log_d - log_d0, np.log([run.loss for run in runs]), log_n0, log_d0)


def groups_of(runs: Sequence[Run]) -> list[str]:
    """Return the groups whose efficiency is fitted (all but BF16), sorted."""
    return sorted({run.group for run in runs} - {BASELINE})


def by_group(runs: Sequence[Run], groups: Sequence[str]) -> Efficiency:
    """Return the function that gives each group an efficiency; its parameters are log eff, in the order of `groups`."""
    member = np.array([[run.group == group for group in groups] for run in runs], dtype=float).reshape(len(runs), -1)

    def efficiency(parameters: Array) -> tuple[Array, Array]:
        return parameters @ member.T, np.broadcast_to(member, (len(parameters), *member.shape))

    return efficiency


def law_model(data: Data, efficiency: Efficiency) -> Model:
    """Return the function that computes the law's residuals, log L_predicted - log L, and their Jacobian."""

    def model(parameters: Array, derivatives: bool) -> tuple[Array, Array]:
        a, log_alpha, b, log_beta, e = (parameters[:, i, None] for i in range(LAW))
        log_eff, by_eff = efficiency(parameters[:, LAW:])
        alpha, beta = np.exp(log_alpha), np.exp(log_beta)
        size = data.log_n + log_eff
        terms = np.stack(np.broadcast_arrays(a - alpha * size, b - beta * data.log_d, e + 0 * size))
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        residuals = top + np.log(total) - data.log_loss
        if not derivatives:
            return residuals, residuals
        shares /= total
        of_size, of_data, of_rest = shares
        columns = (of_size, -of_size * alpha * size, of_data, -of_data * beta * data.log_d, of_rest)
        jacobian = np.concatenate([np.stack(columns, axis=2), -(of_size * alpha)[:, :, None] * by_eff], axis=2)
        return residuals, jacobian

    return model
