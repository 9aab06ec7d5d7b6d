"""Progress on anything that takes over two seconds: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]

_SECONDS_BETWEEN_LINES = 10.0

Update = Callable[..., None]


@contextmanager
def progress(description: str, total: float | None = None, show: bool = True) -> Iterator[Update]:
    """Yield `update(completed, info="")`, to be called as often as convenient.

    `completed` counts towards `total` (any unit; None where the end is not known); `info` is a short text shown
    behind the bar, such as the loss. With `show` false nothing is printed. Everything goes to stderr, so that stdout
    stays clean for results.
    """
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
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[info]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, info="")

        def update(completed: float, info: str = "") -> None:
            bar.update(task, completed=completed, info=info)

        yield update


def _lines(description: str, total: float | None) -> Update:
    start = last = time.monotonic()

    def update(completed: float, info: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        share = min(completed / total, 1.0) if total else 0.0
        left = f", {(now - start) * (1 - share) / share:.0f} s left" if share > 0 else ""
        done = f"{share:.0%}" if total else f"{now - start:.0f} s"
        print(f"{description}: {done}{' ' * bool(info)}{info}{left}", file=sys.stderr, flush=True)

    return update
