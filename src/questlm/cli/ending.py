"""How a command ends early without a traceback: Ctrl-C, a reader of its output that has left, no memory."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

__all__ = ["closed_pipes_raise", "first_sentence", "interruptible", "is_out_of_memory", "silence_output"]

_IMPORT_MACHINERY = "<frozen importlib._bootstrap>"


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, the first Ctrl-C raises KeyboardInterrupt, and a further one ends the process at once.

    While a module is being imported, the first one ends the process too: libraries turn a KeyboardInterrupt there into
    other errors or go on without what they were importing, and nothing has been begun that needs cleaning up.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    if _is_importing(frame):
        signal.raise_signal(number)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_MACHINERY:
            return True
        frame = frame.f_back
    return False


@contextmanager
def closed_pipes_raise() -> Iterator[None]:
    """Within it, printing with rich to a closed pipe raises BrokenPipeError; else rich exits with code 1."""

    def raise_it(self: Console) -> None:
        raise BrokenPipeError

    own = Console.on_broken_pipe
    Console.on_broken_pipe = raise_it  # type: ignore[method-assign]
    try:
        yield
    finally:
        Console.on_broken_pipe = own  # type: ignore[method-assign]


def silence_output() -> None:
    """Point stdout and stderr, where they are closed pipes, at nothing: Python flushes both once more as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory cannot be had: of Python, NumPy, or torch on a CPU or GPU."""
    kinds = [kind.__name__ for kind in type(problem).__mro__]
    return "MemoryError" in kinds or "OutOfMemoryError" in kinds or "DefaultCPUAllocator" in str(problem)


def first_sentence(problem: BaseException) -> str:
    """What a library says of missing memory, without its position in the source and its advice."""
    text = " ".join(str(problem).split()).rpartition("DefaultCPUAllocator: ")[2]
    return text.split(". ")[0][:200].rstrip(".") or "the allocation failed"
