"""Mutated inputs of every format are refused with a sentence, or read right: the short form of `run.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.fuzzing.driver import build_samples, fuzz
from helpers.fuzzing.formats import FORMATS

_INPUTS = 400
"""Of each format: two to ten seconds on one core."""


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_inputs_are_refused_with_a_sentence_or_read_right(name: str, tmp_path: Path) -> None:
    tally = fuzz(name, build_samples(name, tmp_path), seed=0, inputs=range(_INPUTS))
    assert not tally.faults, "\n".join(map(str, tally.faults[:10]))
    assert tally.accepted > 0
    assert tally.refused > 0 or name == "cache"  # which makes what is damaged again
