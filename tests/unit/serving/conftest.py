from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from helpers.serving import FakeBatch
from questlm.serving.limits import Limits
from questlm.serving.metrics import Metrics
from questlm.serving.scheduler import Scheduler


@pytest.fixture
def start(tokenizer_json: str):
    """Start a scheduler over a batch, with limits; it has to end with the test, and every sequence has to leave."""
    started: list[tuple[Scheduler, FakeBatch]] = []

    def start(batch: FakeBatch, **limits: Any) -> tuple[Scheduler, Metrics]:
        metrics = Metrics()
        scheduler = Scheduler(batch, Tokenizer.from_str(tokenizer_json), Limits(**limits), metrics)
        started.append((scheduler, batch))
        scheduler.start()
        return scheduler, metrics

    yield start
    for scheduler, batch in started:
        scheduler.close(0)
        scheduler.join()
        assert not batch.sequences
        assert batch.removed == len(batch.joined)
