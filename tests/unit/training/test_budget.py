"""What is said of a budget before the first step, and which one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from questlm.config import RunConfig
from questlm.errors import ConfigError
from questlm.training.budget import budget_text, chosen_text, require_short

SHAPE = {"layers": 2, "hidden": 64, "heads": 1, "vocab_size": 512}


def settings(budget: dict[str, Any], **train: int) -> RunConfig:
    return RunConfig(model=SHAPE, budget=budget, train={"seq_len": 256, "batch_size": 4, **train})


@pytest.mark.parametrize(
    ("budget", "step_seconds", "text"),
    [
        ({"tokens": 10**9}, 0.4, "one step is 1,024 tokens, 976,562 in all: about 4.5 days at 2.56k tokens/s"),
        ({"tokens_per_param": 10}, 0.1, "1,313,920 tokens (10 per parameter); one step is 1,024 tokens, 1,283 in all"),
        ({"tokens": 1000}, 2.0, "1,000 tokens, but one step is 1,024 tokens; that one is trained, about 2 s"),
        ({"seconds": 600}, 0.5, "10 min; one step is 1,024 tokens, about 1.2k steps at 2.05k tokens/s"),
        ({"seconds": 5}, 90.0, "5 s, but one step is 1,024 tokens and takes about 90 s; that one is trained"),
    ],
)  # fmt: skip
def test_a_budget_is_said_in_steps_and_in_time(budget: dict[str, Any], step_seconds: float, text: str) -> None:
    said = budget_text(settings(budget), step_seconds)
    assert text in said
    assert ("--set train.batch_size=N" in said) == ("that one is trained" in said)


def test_of_a_resumed_run_what_is_left_is_said() -> None:
    assert "976,562 in all: about 2.3 days for what is left" in budget_text(settings({"tokens": 10**9}), 0.4, 0.5)
    assert "about 600 steps for what is left" in budget_text(settings({"seconds": 600}), 0.5, 0.5)


def test_sizes_that_were_chosen_are_said() -> None:
    asked = RunConfig(model=SHAPE)
    config = RunConfig(model=SHAPE, train={"batch_size": 8, "micro_batch_size": 2})
    assert chosen_text(config, asked).endswith(": train.batch_size=8 and train.micro_batch_size=2")
    assert chosen_text(config, config) == ""


def test_a_long_budget_that_nobody_gave_is_refused() -> None:
    require_short(settings({"tokens": 10**6}), 0.1, 3600)
    require_short(settings({"seconds": 1e6}), 0.1, 3600)
    with pytest.raises(ConfigError, match=r"would take about 27\.1 h here; give one, such as --seconds 600, --tokens"):
        require_short(settings({"tokens": 10**9}), 0.1, 3600)
