"""How often the 95 % intervals of a fitted law hold the truth, on the design of the published runs.

    python benchmarks/law_coverage.py --repetitions 200 --noise 0.003

The sizes, tokens and groups are the published ones; the losses are those of a law that such runs determine, with noise.
Prints JSON: for each parameter, the share of repetitions whose profile and bootstrap interval holds its true value.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np

from questlm.progress import progress
from questlm.scaling import published_runs
from questlm.scaling.fit import DELTA, law_bounds
from questlm.scaling.intervals import bootstrap_weights, profile_rise
from questlm.scaling.law import LAW, Data, by_group, groups_of, law_model
from questlm.scaling.solve import minimize

EFF = {"quest/w1a1/int1": 0.03, "quest/w2a2/int2": 0.16, "quest/w3a3/int3": 0.43}
EFF |= {"quest/w4a16/int4": 0.83, "quest/w4a4/int4": 0.7, "quest/w8a8/int8": 0.98}
ALPHA, BETA, E, A_SHARE, B_SHARE = 0.3, 0.3, 1.3, 1.2, 0.7  # the shares: of the loss at the centre of the design, nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--draws", type=int, default=100, help="bootstrap samples a repetition")
    parser.add_argument("--noise", type=float, default=0.003, help="standard deviation of the log loss")
    arguments = parser.parse_args()
    runs = published_runs()
    groups, names, data = groups_of(runs), [run.group for run in runs], Data.of(runs)
    truth = np.log([A_SHARE, ALPHA, B_SHARE, BETA, E, *(EFF[group] for group in groups)])
    efficiency, bounds, every = by_group(runs, groups), law_bounds(data, len(groups)), np.ones((1, len(runs)))
    exact = law_model(data, efficiency)(truth[None], False)[0][0] + data.log_loss
    asked = [1, 3, 4, *range(LAW, len(truth))]
    held = np.zeros((len(asked), len(truth)), dtype=bool)
    held[np.arange(len(asked)), asked] = True
    random = np.random.default_rng(0)
    profile, bootstrap = np.zeros(len(asked)), np.zeros(len(asked))
    with progress("coverage", arguments.repetitions) as update:
        for repetition in range(arguments.repetitions):
            noisy = exact + arguments.noise * random.standard_normal(len(runs))
            model = law_model(replace(data, log_loss=noisy), efficiency)
            best = minimize(model, truth[None], every, DELTA, bounds)
            # An interval holds the truth where holding the parameter at it raises the loss by no more than the rise.
            forced = minimize(model, np.where(held, truth, best.parameters), every, DELTA, bounds, held)
            rise = profile_rise(model(best.parameters, False)[0][0], len(truth), DELTA)
            profile += forced.loss - best.loss <= rise
            weights = bootstrap_weights(names, arguments.draws, random)
            start = np.repeat(best.parameters, arguments.draws, axis=0)
            draws = minimize(model, start, weights, DELTA, bounds, first_delta=16 * DELTA).parameters[:, asked]
            low, high = np.quantile(draws, [0.025, 0.975], axis=0)
            bootstrap += (low <= truth[asked]) & (truth[asked] <= high)
            update(repetition + 1)
    labels = ["alpha", "beta", "E", *groups]
    shares = {
        label: {"profile": float(p), "bootstrap": float(b)}
        for label, p, b in zip(labels, profile / arguments.repetitions, bootstrap / arguments.repetitions, strict=True)
    }
    print(json.dumps(vars(arguments) | {"coverage": shares}, indent=2))


if __name__ == "__main__":
    main()
