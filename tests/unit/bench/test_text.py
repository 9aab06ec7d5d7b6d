from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import questlm
from questlm.bench import text
from questlm.errors import ConfigError


def test_both_sides_read_the_same_tokens_in_turn(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = questlm.load(packed)
    read: list[list[int]] = []

    class Dense:
        config = model.config

        def next_logits(self, ids: torch.Tensor, cache: object) -> torch.Tensor:
            read.append(ids[0].tolist())
            return torch.zeros(1, 5)

    monkeypatch.setattr(text, "float_model", lambda config: Dense())
    ours, dense = text.text_speed(model, [7, 8, 9], tokens=5, rounds=2)
    options = questlm.GenerationOptions(max_new_tokens=5, temperature=0, stop_at_end=False)
    chosen = model.generate_ids([7, 8, 9], options)
    assert read == 3 * [[7, 8, 9], *([token] for token in chosen[:-1])]
    assert min(ours.first_token_seconds, ours.tokens_per_second, dense.tokens_per_second) > 0


def test_times_are_those_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 11.0, 11.5])
    monkeypatch.setattr(text, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert text._timed(iter([1, 2, 3])) == text.TextSpeed(0.5, 2.0)
    found = tuple(text.TextSpeed(each, 10 * each) for each in (3.0, 1.0, 2.0))
    assert text._median(found) == text.TextSpeed(2.0, 20.0)


def test_too_few_tokens_are_refused(packed: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        text.text_speed(questlm.load(packed), [1], tokens=1)
