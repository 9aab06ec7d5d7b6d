"""Runs that obey a known law."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from questlm.scaling import LawFit, Run, fit_law, published_runs

SIZES = (10_000_000, 30_000_000, 100_000_000, 400_000_000)
RATIOS = (10, 30, 100, 300)
EFF = {16: 1.0, 2: 0.2, 4: 0.7}


def law(parameters: float, tokens: float, eff: float) -> float:
    """A law whose every parameter such runs determine."""
    return 400 / (parameters * eff) ** 0.34 + 410 / tokens**0.28 + 1.7


@pytest.fixture(scope="session")
def make_runs() -> Callable[..., list[Run]]:
    """48 runs of three groups on a grid of sizes and tokens a parameter, with Gaussian noise on the log loss."""

    def make(noise: float = 0.0, seed: int = 0) -> list[Run]:
        draw = np.random.default_rng(seed)
        runs = []
        for size, ratio, bits in product(SIZES, RATIOS, EFF):
            loss = law(size, size * ratio, EFF[bits]) * float(np.exp(noise * draw.standard_normal()))
            name, method = (f"int{bits}", "quest") if bits < 16 else ("bf16", "bf16")
            runs.append(Run(size, size * ratio, bits, bits, name, method, loss))
        return runs

    return make


@pytest.fixture(scope="session")
def published_fit() -> LawFit:
    """The law of the published runs."""
    return fit_law(published_runs())


@pytest.fixture(scope="session")
def synthetic_fit(make_runs: Callable[..., list[Run]]) -> LawFit:
    """The law of noisy runs that determine it."""
    return fit_law(make_runs(noise=0.002), draws=40)
