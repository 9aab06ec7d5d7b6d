"""The learning rate over a run."""

from __future__ import annotations

import pytest

from questlm.config import TrainConfig
from questlm.train.schedule import learning_rate

TRAIN = TrainConfig(lr=1e-3)


@pytest.mark.parametrize(("progress", "share"), [(0, 0.01), (0.05, 0.505), (0.1, 1), (0.55, 0.55), (1, 0.1), (2, 0.1)])
def test_it_follows_the_published_cosines(progress: float, share: float) -> None:
    assert learning_rate(TRAIN, progress) == pytest.approx(share * 1e-3)


def test_without_warm_up_it_starts_at_the_top() -> None:
    assert learning_rate(TrainConfig(lr=1e-3, warmup=0), 0) == pytest.approx(1e-3)
