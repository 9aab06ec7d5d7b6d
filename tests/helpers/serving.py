"""What tests of `questlm.serving` share: a fake model, a client that reads what comes of a job, a running server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from questlm.config import GenerationOptions
from questlm.serving import Server, Service, listen
from questlm.serving.outbox import Ending, Outbox
from questlm.serving.scheduler import Job


class FakeBatch:
    """Stands for a model: each token is the one after the last of 257, and a step takes `seconds`.

    Attributes:
        joined: prompts, in the order in which they joined; removed: how many sequences have left; most: at once.
        failures: raised by the next steps, one each.
        broken: tokens that cannot be computed.
    """

    def __init__(self, limit: int, seconds: float = 0.0) -> None:
        self.limit, self.seconds = limit, seconds
        self.joined: list[list[int]] = []
        self.steps = self.removed = self.most = 0
        self.failures: list[Exception] = []
        self.broken: set[int] = set()
        self.sequences: dict[int, int] = {}

    def add(self, prompt: list[int], options: GenerationOptions) -> int:
        assert len(self.sequences) < self.limit
        self.joined.append(prompt)
        self.sequences[len(self.joined)] = prompt[-1]
        self.most = max(self.most, len(self.sequences))
        return len(self.joined)

    def remove(self, sequence: int) -> None:
        del self.sequences[sequence]
        self.removed += 1

    def step(self) -> list[tuple[int, int | None]]:
        if self.failures:
            raise self.failures.pop(0)
        self.steps += 1
        time.sleep(self.seconds)
        for each in self.sequences:
            self.sequences[each] = (self.sequences[each] + 1) % 257
        return [(each, None if token in self.broken else token) for each, token in self.sequences.items()]


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail where it does not come to that."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Client:
    """A job, and what has come of its text."""

    def __init__(self, prompt: list[int], options: GenerationOptions, room: int = 1000) -> None:
        self.job = Job(prompt, options, frozenset({0}), Outbox(lambda: None, room))
        self.text = ""
        self.ending: Ending | None = None

    def has_ended(self) -> bool:
        text, self.ending = self.job.outbox.take()
        self.text += text
        return self.ending is not None

    def wait(self) -> Ending:
        wait_until(self.has_ended)
        assert self.ending is not None
        return self.ending


@contextmanager
def running_server(service: Service, key: str | None = None, send_buffer: int | None = None) -> Iterator[Server]:
    """A server in a thread, which has to end when it is told to.

    Args:
        send_buffer: bytes that the system keeps for a client that does not read; None: what is usual.
    """
    listener = listen("127.0.0.1", 0, service.limits.client_seconds)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = Server(service, listener, "127.0.0.1", key)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def address(server: Server) -> tuple[str, int]:
    """Where a server listens."""
    return server.servers[0].sockets[0].getsockname()[:2]


def web_client(server: Server, **more: Any) -> httpx2.Client:
    """A client whose paths are those of a server."""
    host, port = address(server)
    return httpx2.Client(base_url=f"http://{host}:{port}", timeout=30, trust_env=False, **more)
