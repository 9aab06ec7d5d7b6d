"""A connection of uvicorn that is ended where no whole request comes on it."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["connections_ending_after"]


def connections_ending_after(seconds: float) -> type[H11Protocol]:
    """A class of connections that end where a client neither waits for an answer nor has sent, for `seconds`, the line
    and the headers of a request. uvicorn itself ends only those that send nothing behind an answer.
    """

    class Connection(H11Protocol):
        _end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._end is not None:
                self._end.cancel()

        def _watch(self) -> None:
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if is_answering and self._end is not None:
                self._end.cancel()
                self._end = None
            elif not is_answering and self._end is None:
                self._end = self.loop.call_later(seconds, self.transport.close)

    return Connection
