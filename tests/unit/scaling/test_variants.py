"""Forms of the law: each is found by cross-validation where it is the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from questlm.errors import DataError
from questlm.scaling import Run, published_runs, variants
from questlm.scaling.law import Data
from questlm.scaling.variants import HELD_OUT, VARIANTS, Score, comparable, compare

WIDTHS = ((16, 16), (8, 8), (4, 4), (3, 3), (2, 2), (4, 16), (2, 4))


def runs_of(loss: Callable[[int, int, int, int], float]) -> list[Run]:
    """63 runs of a given truth, over sizes, tokens and widths, with a little noise."""
    draw = np.random.default_rng(0)
    return [
        Run(
            size, size * ratio, weights, acts, "bf16" if weights == 16 else f"int{weights}",
            "bf16" if weights == 16 else "quest",
            loss(size, size * ratio, weights, acts) * float(np.exp(0.001 * draw.standard_normal())),
        )
        for size, ratio, (weights, acts) in product((10**7, 5 * 10**7, 4 * 10**8), (10, 50, 250), WIDTHS)
    ]  # fmt: skip


def decaying(size: int, tokens: int, weights: int, acts: int) -> float:
    """Weights lose more than activations."""
    lost = sum(k * np.exp(-bits / 1.2) for k, bits in ((5, weights), (2, acts)) if bits < 16)
    return 400 / (size * float(np.exp(-lost))) ** 0.34 + 410 / tokens**0.28 + 1.7


def added(size: int, tokens: int, weights: int, acts: int) -> float:
    """A penalty that grows with training."""
    penalty = {16: 0.0, 8: 0.01, 4: 0.05, 3: 0.12, 2: 0.3}[weights] + (0.02 if acts < 16 else 0.0)
    return 400 / size**0.34 + 410 / tokens**0.28 + 1.7 + penalty * (tokens / 10**9) ** 0.3


@pytest.fixture(autouse=True)
def _fewer_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_DEALS", 1)
    monkeypatch.setattr(variants, "_FOLDS", 3)
    monkeypatch.setattr(variants, "_STARTS", 8)
    monkeypatch.setattr(variants, "_STARTS_A_FOLD", 1)


def _scores(truth: Callable[[int, int, int, int], float]) -> dict[str, Score]:
    return {score.name: score for score in compare(comparable(runs_of(truth)))}


@pytest.mark.slow
def test_a_decaying_efficiency_is_found_and_foretells_widths_never_seen() -> None:
    scores = _scores(decaying)
    right = scores["eff_w(b) x eff_a(b)"]
    assert all((right.held_out[what] or 1) < 0.002 for what in HELD_OUT)  # the noise of a run alone is 0.001
    by_run = {name: score.held_out["run"] or 1.0 for name, score in scores.items()}
    assert min(by_run, key=lambda name: by_run[name]) == right.name
    assert all(by_run[name] > 0.005 for name in ("eff(b), decay", "eff(b), saturation", "additive"))
    assert (scores["eff(b), decay"].held_out["bits"] or 0) > 0.01
    assert scores["eff by group"].held_out["bits"] is None


def test_an_added_penalty_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: VARIANTS[name] for name in ("eff by group", "eff(b), decay", "additive, N and D")}
    monkeypatch.setattr(variants, "VARIANTS", few)
    scores = _scores(added)
    errors = {name: score.held_out["run"] or 1.0 for name, score in scores.items()}
    assert min(errors, key=lambda name: errors[name]) == "additive, N and D"
    assert errors["additive, N and D"] < 0.002 < errors["eff by group"]


def test_the_number_of_parameters_is_counted() -> None:
    data, runs = Data.of(published_runs()), published_runs()
    counts = [len(build(runs, data).bounds[0]) for build in VARIANTS.values()]
    assert counts == [11, 15, 7, 7, 8, 11, 13]


@pytest.mark.parametrize(("variant", "known"), [("eff by group", False), ("eff(b), decay", True), ("additive", False)])
def test_only_some_forms_know_a_width_that_is_left_out(variant: str, known: bool) -> None:
    runs = published_runs()
    form = VARIANTS[variant](runs, Data.of(runs))
    out = np.array([run.weight_bits == 3 for run in runs])
    assert form.known(~out)[out].all() == known
    assert form.known(~out)[~out].all()


def test_weights_and_activations_apart_need_runs_that_tell_them_apart() -> None:
    """Without W4A16 every run has equal widths; with W2A16, W2A2 and W4A16 in, W4A4 lacks its activations."""
    runs = published_runs()
    out = np.array([run.act_bits == 16 and run.weight_bits == 4 for run in runs])
    for variant in ("eff_w x eff_a", "eff_w(b) x eff_a(b)"):
        assert not VARIANTS[variant](runs, Data.of(runs)).known(~out)[out].any()
    full = runs_of(decaying)
    chosen = np.array([(run.weight_bits, run.act_bits) != (2, 2) for run in full])
    assert not VARIANTS["eff_w x eff_a"](full, Data.of(full)).known(chosen).all()
    assert VARIANTS["eff_w(b) x eff_a(b)"](full, Data.of(full)).known(chosen).all()


def test_the_method_of_most_integer_runs_is_compared() -> None:
    runs = published_runs()
    others = [replace(run, method="lsq") for run in runs if run.weight_bits == 2]
    floats = [replace(run, format="fp4") for run in runs if run.weight_bits == 4]
    assert comparable([*others, *runs, *floats]) == runs


def test_runs_of_one_width_cannot_be_compared() -> None:
    runs = [run for run in published_runs() if run.weight_bits in (16, 4) and run.weight_bits == run.act_bits]
    with pytest.raises(DataError, match="at least two widths"):
        comparable(runs)
