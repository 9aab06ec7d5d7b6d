"""Showing a sweep: a live table on a terminal; in a log a line for each run that starts, ends or fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from questlm.humanize import duration_text
from questlm.sweep.queue import QueuedRun, State, Sweep
from questlm.terminal import cell, say

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["display", "summary", "table"]

_SECONDS_BETWEEN_LINES = 60.0
_STYLES: dict[State, str] = {"running": "bold", "failed": "red", "waiting": "dim", "finished": "green"}

Show = Callable[[Sweep], None]


@contextmanager
def display() -> Iterator[Show]:
    """Yield a function that shows the sweep on stderr, to be called as often as convenient."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda sweep: live.update(table(sweep), refresh=True)


def table(sweep: Sweep) -> Table:
    """Every run with its state, loss and speed; those that run and fail first, as a terminal may be too low for all."""
    from rich.table import Table

    result = Table(title=summary(sweep), title_justify="left")
    result.add_column("run", no_wrap=True)
    result.add_column("state")
    for name in ("done", "loss", "tokens/s"):
        result.add_column(name, justify="right")
    for state, style in _STYLES.items():
        for item in sweep.of_state(state):
            result.add_row(cell(item.planned.name), cell(_state(item)), *_figures(item), style=style)
    return result


def summary(sweep: Sweep) -> str:
    """Runs by state and the time left for all, on one line."""
    counts = {state: len(sweep.of_state(state)) for state in _STYLES if state != "finished"}
    parts = [f"{len(sweep.of_state('finished'))} of {len(sweep.items)} runs finished"]
    parts += [f"{count} {state}" for state, count in counts.items() if count]
    left = sweep.seconds_left()
    if left:
        parts.append(f"about {duration_text(left)} left")
    return ", ".join(parts)


def _lines() -> Show:
    seen: dict[str, tuple[str, int]] = {}
    last = time.monotonic()

    def show(sweep: Sweep) -> None:
        nonlocal last
        first, changed = not seen, False
        for item in sweep.items:
            now = (item.state, item.attempts)
            if seen.get(item.planned.name, ("waiting", 0)) != now and not (first and item.state == "finished"):
                say(f"{item.planned.name}: {_state(item)}{_said(item)}", err=True)
                changed |= item.state in ("finished", "failed")
            seen[item.planned.name] = now
        if first or changed or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(summary(sweep), err=True)

    return show


def _state(item: QueuedRun) -> str:
    if item.state == "running" and item.slot is not None:
        again = f", attempt {item.attempts}" if item.attempts > 1 else ""
        return f"running on {item.slot.name}{again}"
    if item.state in ("waiting", "failed") and item.problem:
        return f"{'failed' if item.state == 'failed' else 'to be tried again'} ({item.problem})"
    return item.state


def _said(item: QueuedRun) -> str:
    if item.state != "finished":
        return ""
    _, loss, speed = _figures(item)
    return f", loss {loss}, {speed} tokens/s"


def _figures(item: QueuedRun) -> tuple[str, str, str]:
    progress = item.progress
    if progress is None:
        return "", "", ""
    loss = f"{progress.loss:.3f}" if progress.loss is not None else ""
    speed = f"{progress.tokens_per_second:,.0f}" if progress.tokens_per_second is not None else ""
    return f"{progress.share:.0%}", loss, speed
