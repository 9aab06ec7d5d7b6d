"""Whose trust mask a diagnosis shows follows from what the method says of itself, not from its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from questlm.diagnostics.collect import method_of_masks
from questlm.quant import METHODS, register_method


@pytest.fixture
def own() -> Iterator[str]:
    """A method of one's own with a trust mask."""
    register_method("own-trust", replace(METHODS["quest-noht"], summary="as quest-noht"))
    yield "own-trust"
    del METHODS["own-trust"]


def test_a_method_with_a_trust_factor_shows_its_own_mask(own: str) -> None:
    shown = {method: method_of_masks(method) for method in METHODS}
    assert shown[own] == own
    assert {method for method in METHODS if shown[method] == method} == {"quest", "quest-noht", own}
    assert set(shown.values()) == {"quest", "quest-noht", own}


def test_a_learned_weight_has_no_mask_to_read_off(own: str) -> None:
    METHODS[own] = replace(METHODS[own], weight=replace(METHODS[own].weight, learned="a step"))
    assert method_of_masks(own) == "quest"
