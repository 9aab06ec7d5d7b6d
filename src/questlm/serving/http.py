"""Reading from clients and writing to them so that none, slow, gone or sending too much, holds anything for long."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Collection, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from questlm.errors import quoted
from questlm.serving.api_error import ApiError
from questlm.serving.limits import Limits
from questlm.serving.metrics import Metrics
from questlm.serving.texts import Texts

__all__ = ["EventStream", "Guard", "error_response", "read_body", "unless_gone"]

_PROTECTED = ("/v1/", "/metrics")

_log = logging.getLogger(__name__)

T = TypeVar("T")


def error_response(problem: ApiError) -> JSONResponse:
    """What the client gets of an error."""
    return JSONResponse(problem.content, problem.status, headers=problem.headers)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 415, it is not said to be JSON, which keeps the pages of strangers from sending it; 413, it is too
            large; 408, it does not come.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, f"Content-Type is {quoted(kind)}; send JSON with Content-Type: application/json")
    length = request.headers.get("content-length", "0")
    too_large = ApiError(413, f"the body has more than the {limits.body_bytes} bytes that this server allows")
    if not length.isdecimal() or int(length[:20]) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.client_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.client_seconds:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the connection ended before the body did") from None
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, which is cancelled where the client leaves before; then None."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_leaves(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events about texts, which are cancelled when the stream ends, however it does.

    Args:
        seconds: how long a client may not read.
    """

    def __init__(self, texts: Texts, events: AsyncIterator[bytes], seconds: float) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter: nginx is not to collect them
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._texts, self._seconds = texts, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as an ASGI application."""

        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), self._seconds)

        with self._texts:
            try:
                await super().__call__(scope, receive, send_in_time)
            except* (TimeoutError, ClientDisconnect):
                pass  # nobody reads


class Guard:
    """Lets through requests that may be answered, and counts all by path and status.

    Args:
        key: without it in `Authorization: Bearer KEY`, /v1 and /metrics are refused; None: everyone may.
        hosts: names by which the server may be called; None: any. On a loopback address this keeps a page of strangers,
            whose own name leads to 127.0.0.1, from using the server through the browser.
        paths: those that are counted by name.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, key: str | None, hosts: Collection[str] | None, paths: Collection[str]
    ) -> None:
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)
        self._key, self._hosts = None if key is None else key.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        has_begun = False

        async def counted(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, message["status"]).inc()
                has_begun = True
            await send(message)

        refusal = self._refusal(Request(scope))
        app: ASGIApp = self._app if refusal is None else error_response(refusal)
        try:
            await app(scope, receive, counted)
        except Exception:  # a fault of ours is one request's; raised further, it would end the client's connection
            if has_begun:
                raise
            _log.exception("a request failed")
            failed = error_response(ApiError(500, "the server failed at this request; its log says more"))
            await failed(scope, receive, counted)

    def _refusal(self, request: Request) -> ApiError | None:
        host = _host_name(request.headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return ApiError(
                403,
                f"the request is for the host {quoted(host)}, but this server answers to {', '.join(self._hosts)} "
                "only; start it with --host or --api-key to use it under other names",
            )
        if self._key is None or not request.scope["path"].startswith(_PROTECTED):
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._key):
            return None
        return ApiError(
            401,
            "a key is needed: Authorization: Bearer KEY, with what the server was started with",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    name, _, port = header.rpartition(":")
    return (name if port.isdecimal() and name else header).strip("[]").lower()
