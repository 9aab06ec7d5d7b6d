"""Ctrl-C and SIGTERM: the first lets the step finish and the run be saved; a later one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from questlm.terminal import command_text

__all__ = ["Interrupt", "Interrupted"]

_ONE_REQUEST = 2.0
"""Seconds in which further signals count as the first: of a key held down, or of torchrun, which passes signals on."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop, and is saved
    """Training stopped on a signal, after saving. Carries the signal's number and the run folder."""

    def __init__(self, signal_number: int, run: Path) -> None:
        super().__init__(f"stopped by signal {signal_number}; continue with: {command_text('train', '--resume', run)}")
        self.signal_number, self.run = signal_number, run


class Interrupt:
    """A context in which SIGINT and SIGTERM only set `received`, the signal's number.

    A signal more than two seconds later raises KeyboardInterrupt, and one after that ends the process. Outside the
    main thread signals cannot be handled, and the context does nothing.

    Args:
        message: printed to stderr at the first signal; '' for nothing.
    """

    def __init__(self, message: str = "") -> None:
        self.received: int | None = None
        self._message = message
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
            if self._message:
                _print(self._message)
        elif now - self._since > _ONE_REQUEST:
            for each in self._previous:
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt


def _print(message: str) -> None:
    # Not print(): the signal may have come in the middle of another one, which does not allow a second.
    with suppress(OSError):
        os.write(2, f"\n{message}\n".encode())
