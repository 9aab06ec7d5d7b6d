"""The learning rate over a run."""

from __future__ import annotations

from typing import get_args

import pytest

from questlm.config import TrainConfig
from questlm.errors import ConfigError
from questlm.training.schedule import SCHEDULES, learning_rate

TRAIN = TrainConfig(lr=1e-3)


@pytest.mark.parametrize(("progress", "share"), [(0, 0.01), (0.05, 0.505), (0.1, 1), (0.55, 0.55), (1, 0.1), (2, 0.1)])
def test_it_follows_the_published_cosines(progress: float, share: float) -> None:
    assert learning_rate(TRAIN, progress) == pytest.approx(share * 1e-3)


def test_without_warm_up_it_starts_at_the_top() -> None:
    assert learning_rate(TrainConfig(lr=1e-3, warmup=0), 0) == pytest.approx(1e-3)


@pytest.mark.parametrize(("progress", "share"), [(0.05, 0.505), (0.1, 1), (0.5, 1), (0.75, 0.5), (0.9, 0.2), (1, 0)])
def test_the_linear_schedule_stays_at_its_peak_and_then_falls_along_a_line(progress: float, share: float) -> None:
    train = TrainConfig(lr=1e-3, schedule="linear", decay=0.5, final_lr=0)
    assert learning_rate(train, progress) == pytest.approx(share * 1e-3)


def test_a_fall_that_begins_before_the_warm_up_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup 0\.3 and decay 0\.8 are more than the whole budget"):
        TrainConfig(schedule="linear", warmup=0.3, decay=0.8)


def test_the_settings_name_every_schedule() -> None:
    assert set(get_args(TrainConfig.model_fields["schedule"].annotation)) == SCHEDULES.keys()
