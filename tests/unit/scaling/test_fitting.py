"""Settings that are said to fit a budget do so by the planner's formula, and are the least change of their kind."""

from __future__ import annotations

import pytest

from questlm.config import load_config
from questlm.scaling.artifact_size import artifact_bytes
from questlm.scaling.fitting import alternatives


@pytest.mark.parametrize("coded", [False, True])
def test_each_alternative_fits_and_the_next_larger_one_does_not(coded: bool) -> None:
    config = load_config("golf-16mb", overrides=["model.vocab_size=4096"])
    actual = artifact_bytes(config.model, config.quant, coded, tokenizer=0)
    limit = actual - 2_000_000
    found = alternatives(config.model, config.quant, actual=actual, limit=limit, coded=coded)
    assert {option.settings.split("=")[0] for option in found} >= {"quant.weight_bits", "model.layers", "model.hidden"}
    for option in found:
        changed = load_config("golf-16mb", overrides=["model.vocab_size=4096", *option.settings.split()])
        assert option.bytes <= limit
        assert abs(artifact_bytes(changed.model, changed.quant, coded, tokenizer=0) - option.bytes) < 500
    layers = next(int(option.settings.split("=")[1]) for option in found if option.settings.startswith("model.layers"))
    one_more = config.model.model_copy(update={"layers": layers + 1})
    assert artifact_bytes(one_more, config.quant, coded, tokenizer=0) > limit


def test_what_the_formula_misses_of_this_model_is_taken_off() -> None:
    config = load_config("golf-16mb", overrides=["model.vocab_size=4096"])
    planned = artifact_bytes(config.model, config.quant, True, tokenizer=0)
    given = {"limit": planned - 10**6, "coded": True}
    exact = dict(alternatives(config.model, config.quant, actual=planned, **given))
    larger = dict(alternatives(config.model, config.quant, actual=planned + 5000, **given))
    common = exact.keys() & larger.keys()
    assert common
    assert all(larger[name] == exact[name] + 5000 for name in common)
