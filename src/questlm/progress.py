"""Show progress of anything that takes over two seconds: a live bar on a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from questlm.errors import cleaned
from questlm.humanize import duration_text

__all__ = ["SECONDS_BETWEEN_LINES", "progress", "tell"]

SECONDS_BETWEEN_LINES = 10.0
"""How often a progress line is renewed in a log."""

Update = Callable[..., None]


def tell(note: str) -> None:
    """Print a note for the user on stderr."""
    with suppress(BrokenPipeError):
        print(f"quest: note: {note}", file=sys.stderr, flush=True)


@contextmanager
def progress(description: str, total: float | None = None, show: bool = True) -> Iterator[Update]:
    """Yield `update(completed, info="")`, to be called as often as convenient.

    `completed` counts towards `total` (any unit; None where the end is unknown); `info` is a short text after the bar,
    such as the loss. With `show` false nothing is printed. Everything goes to stderr, so that stdout contains only
    results.
    """
    description = cleaned(description)  # it may contain the name of a file
    if not show:
        yield lambda completed, info="": None
    elif sys.stderr.isatty():
        with _bar(description, total) as update:
            yield update
    else:
        yield _lines(description, total)


@contextmanager
def _bar(description: str, total: float | None) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """The time left, also in days, which rich's own column shows as hours."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            left = task.time_remaining
            return Text("" if left is None else f"{duration_text(left)} left", style="progress.remaining")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        TimeLeft(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, info="")

        def update(completed: float, info: str = "") -> None:
            bar.update(task, completed=completed, info=info)

        yield update


def _lines(description: str, total: float | None) -> Update:
    start = last = time.monotonic()
    first: float | None = None  # share that was done before, in a resumed run

    def update(completed: float, info: str = "") -> None:
        nonlocal first, last
        now = time.monotonic()
        share = min(completed / total, 1.0) if total else 0.0
        first = share if first is None else first
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        left = f", {duration_text((now - start) * (1 - share) / (share - first))} left" if share > first else ""
        done = f"{share:.0%}" if total else f"{now - start:.0f} s"
        with suppress(BrokenPipeError):  # the reader has gone, which must not end the work
            print(f"{description}: {done}{' ' * bool(info)}{info}{left}", file=sys.stderr, flush=True)

    return update
