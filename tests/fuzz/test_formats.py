"""Mutated inputs of every format are refused with a sentence, or read right: the short form of `run.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing.driver import build_samples, fuzz

_INPUTS = {
    "artifact": 300, "tensors": 300, "record": 300, "settings": 300, "set": 300, "grid": 200,
    "law": 300, "rows": 300, "tokenizer": 300, "hugging-face": 300, "text": 300,
}  # fmt: skip
"""About four seconds of each on one core."""


@pytest.mark.parametrize("name", _INPUTS)
def test_mutated_inputs_are_refused_with_a_sentence_or_read_right(name: str, tmp_path: Path) -> None:
    tally = fuzz(name, build_samples(name, tmp_path), seed=0, inputs=range(_INPUTS[name]))
    assert not tally.faults, "\n".join(map(str, tally.faults[:10]))
    assert tally.accepted > 0
    assert tally.refused > 0
