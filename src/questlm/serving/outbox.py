"""Text on its way from the thread that generates it to the client that reads it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Ending", "Outbox"]

Reason = Literal["stop", "length", "cancelled", "unread", "closing", "error"]


@dataclass(frozen=True)
class Ending:
    """How a text ended.

    Attributes:
        reason: "stop" at its end or a stop string, "length" at its limit; the others are failures: the client has left,
            does not read, the server is ending, or something else that `message` says.
        tokens: how many were generated.
        message: a sentence about a failure.
    """

    reason: Reason
    tokens: int = 0
    message: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether the text is not what was asked for."""
        return self.reason not in ("stop", "length")


class Outbox:
    """Pieces of one text that wait to be read, at most `room`, and how it ended; for two threads.

    Args:
        wake: called by the writing thread when there is something to take after there was nothing.
    """

    def __init__(self, wake: Callable[[], None], room: int) -> None:
        self._wake, self._room = wake, room
        self._lock = threading.Lock()
        self._pieces: list[str] = []
        self._ending: Ending | None = None

    def put(self, piece: str) -> bool:
        """Add a piece; False, and nothing is added, where too many wait to be read."""
        with self._lock:
            if len(self._pieces) == self._room:
                return False
            self._pieces.append(piece)
            is_first = len(self._pieces) == 1
        if is_first:
            self._wake()
        return True

    def end(self, ending: Ending) -> None:
        """State that no piece follows; the first ending counts."""
        with self._lock:
            self._ending = self._ending or ending
        self._wake()

    def take(self) -> tuple[str, Ending | None]:
        """All text that waits, and the ending where nothing follows it."""
        with self._lock:
            text = "".join(self._pieces)
            self._pieces.clear()
            return text, self._ending
