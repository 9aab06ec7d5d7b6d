"""What reading one input may take, and what a refusal must look like."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from questlm.memory import peak_resident_memory

__all__ = ["TooSlow", "fault_of_message", "limited", "memory_limit", "peak_bytes", "reset_peak"]

_MEMORY = 384 * 2**20  # that the peak may rise above what the process had before
_ADDRESSES = 2**31  # beyond those in use: a tensor on the word of a header is refused by the system
_LONGEST_MESSAGE = 1000


class TooSlow(BaseException):
    """The input took too long. No Exception, so that no reader takes it for a damaged file."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the block when it takes longer."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stop_when_late() -> None:
    """Let the alarm of `limited` raise TooSlow. Once in each process."""

    def late(_number: int, _frame: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, late)


def memory_limit() -> None:
    """Let this process have no more than some more addresses than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def reset_peak() -> None:
    """Begin to count the peak of memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory that was in use since `reset_peak`."""
    return peak_resident_memory()


def too_much(before: int, now: int) -> str | None:
    """What is wrong with a peak of memory, or None."""
    return f"{(now - before) >> 20} MiB more" if now - before > _MEMORY else None


def fault_of_message(message: str) -> str | None:
    """Why a message is no sentence for a person, or None."""
    if not message.strip():
        return "that is empty"
    if len(message) > _LONGEST_MESSAGE:
        return "that is too long"
    if not message.isprintable():
        return "that does not print"
    return None
