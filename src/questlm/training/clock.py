"""Time: how much of a run's budget is spent, and how long its steps take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from questlm.training.context import RunContext
from questlm.training.counters import Counters

__all__ = ["BudgetClock", "share_done"]


def share_done(run: RunContext, counters: Counters) -> float:
    """Share of the budget that is spent: of its seconds, or of the steps that its tokens pay for."""
    seconds = run.config.budget.seconds
    if seconds is not None:
        return counters.seconds / seconds
    return counters.step / (run.config.total_steps() or 1)


class BudgetClock:
    """Counts the seconds of a run into its counters, beginning now."""

    def __init__(self, run: RunContext, counters: Counters) -> None:
        self.run, self.counters = run, counters
        self._began, self._seconds_before = time.monotonic(), counters.seconds
        self._share_before = self.share_done

    @property
    def share_done(self) -> float:
        """Share of the budget that was spent when `read` was last called."""
        return share_done(self.run, self.counters)

    @contextmanager
    def timing_step(self) -> Iterator[None]:
        """Add the time inside the block to the time that steps took."""
        began = time.monotonic()
        yield
        self.counters.step_seconds += time.monotonic() - began

    def read(self) -> None:
        """Look at the clock; all processes must, and take the latest of their times."""
        seconds = self._seconds_before + time.monotonic() - self._began
        self.counters.seconds = self.run.processes.largest(seconds)[0]

    def seconds_left(self) -> float | None:
        """Seconds that the rest of the budget takes at the pace so far; None before the first step of this process."""
        share = self.share_done - self._share_before
        if share <= 0:
            return None
        return (self.counters.seconds - self._seconds_before) * max(0.0, 1 - self.share_done) / share
