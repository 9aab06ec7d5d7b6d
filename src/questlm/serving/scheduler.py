"""Which texts are computed when: one thread owns the model, and runs it step by step for all of them.

Texts join the batch first come, first served, whenever it has a place, and leave it when they end; nobody waits for a
batch to fill or to end. A client that has left or does not read loses its place and costs the others nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenizers import Tokenizer

from questlm.config import GenerationOptions
from questlm.errors import ConfigError
from questlm.inference.text import TextDecoder
from questlm.serving.limits import Limits
from questlm.serving.metrics import Metrics
from questlm.serving.outbox import Ending, Outbox, Reason

__all__ = ["Batch", "Closing", "Job", "QueueFull", "Scheduler"]

_log = logging.getLogger(__name__)
_CLOSING = "the server is ending; send the request to another one, or again later"


class Batch(Protocol):
    """What computes tokens: `questlm.inference.batch.RunningBatch`."""

    limit: int

    def add(self, prompt: list[int], options: GenerationOptions) -> Any:
        """Let a sequence join."""

    def remove(self, sequence: Any) -> None:
        """Let it leave."""

    def step(self) -> Sequence[tuple[Any, int | None]]:
        """Each sequence that has a next token, and that; None: it cannot be computed."""


class QueueFull(Exception):  # noqa: N818 - it says what is so, not that something is broken
    """No place is free and as many texts wait as may; `seconds`: when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Closing(Exception):  # noqa: N818
    """The server takes no more requests."""


@dataclass(eq=False)
class Job:
    """A text to generate.

    Attributes:
        prompt: token ids, at least one; with `options.max_new_tokens` no more than the batch allows.
        ends: ids of tokens that end the text.
        outbox: where the text goes.
    """

    prompt: list[int]
    options: GenerationOptions
    ends: frozenset[int]
    outbox: Outbox
    tokens: int = 0
    is_cancelled: bool = False
    decoder: TextDecoder | None = None
    submitted: float = field(default_factory=time.monotonic)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the text so far."""
        return len(self.prompt) + self.tokens


class Scheduler:
    """Generates the texts of `submit`ted jobs in a thread of its own, from `start` to `close`."""

    def __init__(self, batch: Batch, tokenizer: Tokenizer, limits: Limits, metrics: Metrics) -> None:
        self._batch, self._tokenizer, self._limits, self._metrics = batch, tokenizer, limits, metrics
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, Job] = {}
        self._closes_at: float | None = None
        self._seconds_a_job = 1.0
        self._thread = threading.Thread(target=self._run, name="questlm-scheduler", daemon=True)
        metrics.watch(lambda: len(self._running), lambda: len(self._waiting))

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and self._closes_at is None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of `jobs`, or none.

        Raises:
            QueueFull: too many wait already.
            Closing: no more requests are taken.
        """
        with self._changed:
            if not self.is_ready:
                raise Closing
            free = max(0, self._batch.limit - len(self._running))
            if len(self._waiting) + len(jobs) > self._limits.queue + free:
                ahead = len(self._waiting) / self._batch.limit
                raise QueueFull(min(60, 1 + int(ahead * self._seconds_a_job)))
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Generate no more of a job, wherever it is; nothing happens to one that has ended."""
        with self._changed:
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "cancelled")
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Take no more jobs, and end in `seconds` those that have not ended by then; returns at once."""
        with self._changed:
            self._closes_at = time.monotonic() + seconds
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended, after `close`."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._admit()
                self._drop_cancelled()
                self._step()
        finally:
            with self._changed:
                self._closes_at = self._closes_at or time.monotonic()
                self._end_all("closing", _CLOSING)

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to compute; False when everything is to end."""
        with self._changed:
            while not self._waiting and not self._running and self._closes_at is None:
                self._changed.wait()
            if self._closes_at is None:
                return True
            return bool(self._waiting or self._running) and time.monotonic() < self._closes_at

    def _admit(self) -> None:
        with self._changed:
            while self._waiting and len(self._running) < self._batch.limit:
                job = self._waiting.popleft()
                try:
                    job.decoder = TextDecoder(self._tokenizer, job.prompt, job.options.stop)
                    sequence = self._batch.add(job.prompt, job.options)
                except Exception:  # of this text alone, whatever it is: the thread and all other texts go on
                    _log.exception("a request cannot be begun")
                    self._end(job, "error", "the prompt cannot be read by the model")
                else:
                    self._running[sequence] = job
                    self._metrics.queue_seconds.observe(time.monotonic() - job.submitted)

    def _drop_cancelled(self) -> None:
        for sequence, job in list(self._running.items()):
            if job.is_cancelled:
                self._leave(sequence, "cancelled")

    def _step(self) -> None:
        if not self._running:
            return
        begin = time.monotonic()
        try:
            drawn = self._batch.step()
        except ConfigError as problem:  # no memory for the keys and values of so many tokens
            if self._running:
                longest = max(self._running, key=lambda each: self._running[each].length)
                self._leave(longest, "error", str(problem))
            return
        except Exception:  # it may be any text's fault, so all that run are ended; the thread goes on for those to come
            _log.exception("a step failed")
            for sequence in list(self._running):
                self._leave(sequence, "error", "the model failed on this server; its log says more")
            return
        self._metrics.step_seconds.observe(time.monotonic() - begin)
        for sequence, token in drawn:
            try:
                self._deliver(sequence, self._running[sequence], token)
            except Exception:  # as where a text is begun
                _log.exception("a token cannot be decoded")
                self._leave(sequence, "error", "the tokenizer cannot decode what the model wrote")

    def _deliver(self, sequence: Any, job: Job, token: int | None) -> None:
        """Send on what a token adds to the text, and let the job leave where it ends."""
        assert job.decoder is not None
        ended: Reason | None = None
        if token is None:
            self._leave(sequence, "error", "the model gave logits that are not finite for this prompt")
            return
        if job.options.stop_at_end and token in job.ends:
            piece, ended = job.decoder.finish(), "stop"
        else:
            self._count_token(job)
            piece = job.decoder.add(token)
            if job.tokens == job.options.max_new_tokens and not job.decoder.stopped:
                piece, ended = piece + job.decoder.finish(), "length"
            if job.decoder.stopped:
                ended = "stop"
        if piece and not job.outbox.put(piece):
            self._leave(sequence, "unread", "the client does not read what it is sent")
        elif ended is not None:
            self._leave(sequence, ended)

    def _count_token(self, job: Job) -> None:
        job.tokens += 1
        self._metrics.generated_tokens.inc()
        if job.tokens == 1:
            self._metrics.first_token_seconds.observe(time.monotonic() - job.submitted)

    def _leave(self, sequence: Any, reason: Reason, message: str = "") -> None:
        with self._changed:
            job = self._running.pop(sequence)
        self._batch.remove(sequence)
        self._seconds_a_job += 0.1 * (time.monotonic() - job.submitted - self._seconds_a_job)
        self._end(job, reason, message)

    def _end(self, job: Job, reason: Reason, message: str = "") -> None:
        self._metrics.sequences.labels(reason).inc()
        job.outbox.end(Ending(reason, job.tokens, message))

    def _end_all(self, reason: Reason, message: str) -> None:
        for sequence, job in list(self._running.items()):
            del self._running[sequence]
            self._batch.remove(sequence)
            self._end(job, reason, message)
        while self._waiting:
            self._end(self._waiting.popleft(), reason, message)
