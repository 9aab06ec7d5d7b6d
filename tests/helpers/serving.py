"""What tests of `questlm.serving` share: a fake model, and a client that reads what comes of a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from questlm.config import GenerationOptions
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


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
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
