"""Batch sizes that nobody gave."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from questlm.config import RunConfig, load_config
from questlm.errors import ConfigError
from questlm.memory import Memory
from questlm.parallel import Processes
from questlm.training import batches
from questlm.training.batches import choose_batch, choose_micro_batch, keep_batches, require_training_memory

CPU, ALONE = torch.device("cpu"), Processes()
SMALL = {"layers": 2, "hidden": 64, "heads": 1, "vocab_size": 512}  # 0.13 million parameters in blocks
LARGE = {"layers": 6, "hidden": 640, "heads": 5, "vocab_size": 512}  # 30 million


def settings(model: dict[str, Any], budget: dict[str, Any], **train: int) -> RunConfig:
    return RunConfig(model=model, budget=budget, train=train)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    def have(count: float) -> None:
        monkeypatch.setattr(batches, "host_memory", lambda: Memory(int(count), 2 * int(count)))

    return have


@pytest.mark.parametrize(
    ("model", "budget", "sequences"),
    [
        (SMALL, {"tokens": 10**9}, 4),  # 2,048 tokens, as the small presets
        (SMALL, {"tokens": 4_000}, 1),
        (LARGE, {"tokens": 10**9}, 512),  # as published
        (LARGE, {"tokens": 10**6}, 16),  # 10,000 tokens a step at most, to a power of two
        (LARGE, {"seconds": 5.0}, 512),  # what it pays for is not known yet
    ],
)
def test_the_batch_goes_by_size_and_budget(model: dict[str, Any], budget: dict[str, Any], sequences: int) -> None:
    assert choose_batch(settings(model, budget), 1).train.batch_size == sequences


def test_a_budget_in_seconds_goes_by_the_tokens_that_it_pays_for() -> None:
    assert choose_batch(settings(LARGE, {"seconds": 5.0}), 1, tokens=250_000).train.batch_size == 4


def test_a_batch_that_was_given_is_kept() -> None:
    config = settings(LARGE, {"tokens": 100}, batch_size=48)
    assert choose_batch(config, 1) is config
    preset = load_config("30m", flags={"budget": {"tokens": 100}})
    assert choose_batch(preset, 1).train.batch_size == 512


def test_the_batch_is_one_that_processes_and_passes_divide() -> None:
    assert choose_batch(settings(LARGE, {"tokens": 4_000}), 3).train.batch_size == 3
    assert choose_batch(settings(LARGE, {"tokens": 4_000}, micro_batch_size=5), 3).train.batch_size == 15


def test_passes_are_as_long_as_memory_allows(free: Any) -> None:
    config = settings(LARGE, {"tokens": 10**9}, batch_size=24)
    needed = batches._needed(config, CPU, 1)
    free(needed.total(9) / 0.8)
    assert choose_micro_batch(config, ALONE, CPU).train.micro_batch_size == 8
    free(needed.total(1.01) / 0.8)  # type: ignore[arg-type]
    assert choose_micro_batch(config, ALONE, CPU).train.micro_batch_size == 1
    free(1e15)
    assert choose_micro_batch(config, ALONE, CPU).train.micro_batch_size == 12  # 8,192 tokens are enough for a CPU
    small = settings(LARGE, {"tokens": 10**9}, batch_size=8)
    assert choose_micro_batch(small, ALONE, CPU) is small


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs(free: Any) -> None:
    free(0.5e9)
    config = settings(LARGE, {"tokens": 10**9}, batch_size=16)
    with pytest.raises(ConfigError, match=r"31,137,920 parameters .*: 623 MB; .* needs about .* 500 MB of 1 GB are"):
        choose_micro_batch(config, ALONE, CPU)


def test_passes_that_were_given_are_kept_or_refused(free: Any) -> None:
    config = settings(LARGE, {"tokens": 10**9}, batch_size=64, micro_batch_size=64)
    free(1e15)
    assert choose_micro_batch(config, ALONE, CPU) is config
    free(batches._needed(config, CPU, 1).total(64) / 1.2)  # the estimate may be that much too high
    assert choose_micro_batch(config, ALONE, CPU) is config
    free(2e9)
    with pytest.raises(ConfigError, match=r"a pass of 64 x 512 tokens.*with --set train\.micro_batch_size=N"):
        require_training_memory(config, ALONE, CPU)


def test_processes_of_one_machine_share_its_memory(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    free(8e9)
    memory = batches._host_memory_for_each(Processes(0, 8, 0))
    assert memory == Memory(2 * 10**9, 4 * 10**9)


def test_where_memory_is_not_known_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "host_memory", lambda: None)
    require_training_memory(settings(LARGE | {"layers": 1000}, {"tokens": 1}, batch_size=512), ALONE, CPU)


def test_a_resumed_run_keeps_the_sizes_that_were_chosen() -> None:
    saved = settings(LARGE, {"tokens": 10**6}, batch_size=16, micro_batch_size=4)
    assert keep_batches(settings(LARGE, {"tokens": 10**6}), saved).train == saved.train
    other = settings(LARGE, {"tokens": 10**6}, batch_size=8, micro_batch_size=8)
    assert keep_batches(other, saved) is other
