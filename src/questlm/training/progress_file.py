"""Telling other programs how far a run is, by a small file in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from questlm.progress import SECONDS_BETWEEN_LINES
from questlm.records import PROGRESS_NAME, RunProgress
from questlm.training.clock import BudgetClock

__all__ = ["progress_file"]


@contextmanager
def progress_file(clock: BudgetClock) -> Iterator[Callable[[], None]]:
    """Yield a function that renews `progress.json`, at most as often as a line of progress; removed at the end.

    The main process writes it. A file that cannot be written stops nothing: whether the disk is full, the next
    checkpoint will tell.
    """
    run, counters, written = clock.run, clock.counters, -SECONDS_BETWEEN_LINES

    def renew() -> None:
        nonlocal written
        now = time.monotonic()
        if run.processes.is_main and now - written >= SECONDS_BETWEEN_LINES:
            written = now
            share = min(clock.share_done, 1.0)  # the last step of a budget in seconds ends after it
            state = RunProgress(share, counters.last_loss, counters.tokens_per_second, clock.seconds_left())
            with suppress(OSError):
                state.save(run.folder.path)

    try:
        yield renew
    finally:
        if run.processes.is_main:
            with suppress(OSError):
                (run.folder.path / PROGRESS_NAME).unlink(missing_ok=True)
