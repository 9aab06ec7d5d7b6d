"""The texts of one request on the side of the event loop: waited for, collected, streamed, and cancelled at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from questlm.config import GenerationOptions
from questlm.serving.api_error import ApiError
from questlm.serving.outbox import Ending, Outbox
from questlm.serving.replies import END_OF_EVENTS, Reply, event
from questlm.serving.scheduler import Closing, Job, QueueFull, Scheduler

__all__ = ["Texts"]

_STATUS = {"closing": 503, "unread": 408}


class Texts:
    """Jobs of one request. As a context it cancels what has not ended.

    Args:
        prompts: token ids, and how each text is generated.
        ends: ids of tokens that end a text.
        room: of each outbox.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prompts: Sequence[tuple[list[int], GenerationOptions]],
        ends: frozenset[int],
        room: int,
    ) -> None:
        self._scheduler, self._woken = scheduler, asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._woken.set)

        self.jobs = [Job(prompt, options, ends, Outbox(wake, room)) for prompt, options in prompts]

    def submit(self) -> None:
        """Queue all of them.

        Raises:
            ApiError: 429, the queue is full; 503, the server is ending.
        """
        try:
            self._scheduler.submit(self.jobs)
        except QueueFull as full:
            raise ApiError(
                429,
                f"{len(self.jobs)} more texts do not fit this server's queue; ask again in {full.seconds} s",
                code="queue_full",
                headers={"Retry-After": str(full.seconds)},
            ) from None
        except Closing:
            raise ApiError(503, "the server is ending and takes no more requests", code="closing") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self.jobs:
            self._scheduler.cancel(job)

    async def pieces(self) -> AsyncIterator[tuple[int, str, Ending | None]]:
        """Pieces of the texts as they come, each with its number, until all have ended.

        Raises:
            ApiError: a text cannot be generated.
        """
        open_jobs = dict(enumerate(self.jobs))
        while open_jobs:
            await self._woken.wait()
            self._woken.clear()
            for number, job in list(open_jobs.items()):
                text, ending = job.outbox.take()
                if ending is not None:
                    del open_jobs[number]
                    if ending.is_failure:
                        raise ApiError(_STATUS.get(ending.reason, 500), ending.message, code=ending.reason)
                if text or ending is not None:
                    yield number, text, ending

    async def whole(self, reply: Reply) -> dict[str, object]:
        """The answer when all texts have ended. ApiError as `pieces`."""
        texts, endings = ["" for _ in self.jobs], [Ending("stop") for _ in self.jobs]
        async for number, text, ending in self.pieces():
            texts[number] += text
            endings[number] = ending or endings[number]
        return reply.whole(texts, endings)

    async def events(self, reply: Reply, includes_usage: bool) -> AsyncIterator[bytes]:
        """The answer as server-sent events; a failure is one, too, as the status has been sent."""
        endings = []
        for first in reply.first_pieces(self.jobs):
            yield event(first)
        try:
            async for number, text, ending in self.pieces():
                yield event(reply.piece(number, text, ending))
                endings += [ending] if ending is not None else []
        except ApiError as problem:
            yield event(problem.content)
            return
        if includes_usage:
            yield event(reply.usage(endings))
        yield END_OF_EVENTS
