"""The web application: what each path does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ExceptionHandler

from questlm.config import GenerationOptions
from questlm.errors import ConfigError, quoted
from questlm.inference import PackedModel
from questlm.serving.api_error import ApiError
from questlm.serving.chat import ChatTemplate
from questlm.serving.http import EventStream, Guard, error_response, read_body, unless_gone
from questlm.serving.limits import Limits
from questlm.serving.metrics import Metrics
from questlm.serving.page import page_response
from questlm.serving.replies import ChatReply, CompletionReply, Reply
from questlm.serving.requests import ChatRequest, CompletionRequest, GenerationRequest, parse_request
from questlm.serving.scheduler import Scheduler
from questlm.serving.texts import Texts

__all__ = ["Service", "create_app"]


class Service:
    """A packed model behind HTTP; each method answers one path.

    Args:
        name: of the model, for clients.

    Raises:
        ConfigError: the model has no tokenizer, its chat template cannot be read, or there is no memory for its keys
            and values.
    """

    def __init__(self, model: PackedModel, name: str, limits: Limits) -> None:
        if model.tokenizer is None:
            raise ConfigError("the model was packed without a tokenizer, so it cannot be served as text; pack it again")
        self.model, self.name, self.limits, self.metrics = model, name, limits, Metrics()
        self.scheduler = Scheduler(
            model.running_batch(limits.sequences, limits.context), model.tokenizer, limits, self.metrics
        )
        self._chat = None if model.chat_template is None else ChatTemplate(model.chat_template, model.tokenizer)
        self._ends = frozenset(() if model.end_of_text is None else (model.end_of_text,))
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = parse_request(await read_body(request, self.limits), CompletionRequest)
        prompts = await run_sync(partial(self._ids, asked.prompt, "prompt"))
        return await self._answer(request, asked, prompts, self._ends, CompletionReply)

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = parse_request(await read_body(request, self.limits), ChatRequest)
        if self._chat is None:
            raise ApiError(
                400, f"the model {quoted(self.name)} has no chat template; use /v1/completions", code="no_chat_template"
            )
        messages = [
            {"role": "system" if each.role == "developer" else each.role, "content": each.content}
            for each in asked.messages
        ]
        try:
            text = await run_sync(self._chat.render, messages)
        except ConfigError as problem:
            raise ApiError(400, str(problem), param="messages") from None
        prompts = await run_sync(partial(self._ids, [text], "messages"))
        return await self._answer(request, asked, prompts, self._ends | self._chat.ends, ChatReply)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._check_name(request.path_params["name"])
        return JSONResponse(self._description())

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while requests are taken, else 503."""
        is_ready = self.scheduler.is_ready
        return JSONResponse({"status": "ok" if is_ready else "ending"}, 200 if is_ready else 503)

    async def numbers(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """GET /."""
        return page_response()

    def _description(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "questlm",
            "packed_bytes": self.model.bytes,
            "weight_bytes": self.model.weight_bytes,
            "context": self.limits.context,
            "has_chat_template": self._chat is not None,
        }

    def _ids(self, prompts: Sequence[str | list[int]], field: str) -> list[list[int]]:
        try:
            return [self.model.prompt_ids(prompt) for prompt in prompts]
        except ConfigError as problem:
            raise ApiError(400, str(problem), param=field) from None

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self.name):
            message = f"model = {quoted(name)} is not served here; there is: {self.name}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _answer(
        self,
        request: Request,
        asked: GenerationRequest,
        prompts: list[list[int]],
        ends: frozenset[int],
        reply_kind: type[Reply],
    ) -> Response:
        self._check_name(asked.model)
        if (count := len(prompts) * asked.n) > (most := self.limits.queue + self.limits.sequences):
            raise ApiError(400, f"{count} texts are asked for at once, but at most {most} can be", param="n")
        tasks = [
            (prompt, asked.options(place * asked.n + copy, self._new_tokens(prompt, asked)))
            for place, prompt in enumerate(prompts)
            for copy in range(asked.n)
        ]
        texts = Texts(self.scheduler, tasks, ends, self.limits.unread_pieces)
        texts.submit()
        reply = reply_kind(self.name, sum(map(len, prompts)))
        self.metrics.prompt_tokens.inc(reply.prompt_tokens)
        if asked.stream:
            return EventStream(texts, texts.events(reply, asked.includes_usage), self.limits.client_seconds)
        with texts:
            return JSONResponse(await unless_gone(request, texts.whole(reply)))

    def _new_tokens(self, prompt: list[int], asked: GenerationRequest) -> int:
        """How many tokens may follow a prompt."""
        room, wanted = self.limits.context - len(prompt), asked.limit
        if room >= (wanted or 1):
            return wanted or min(room, GenerationOptions().max_new_tokens)
        more = "" if wanted is None else f" and {wanted} more are asked for"
        raise ApiError(
            400,
            f"the prompt has {len(prompt)} tokens{more}; this server allows {self.limits.context} in all",
            param="prompt" if wanted is None else "max_tokens",
            code="context_length_exceeded",
        )


def create_app(service: Service, key: str | None = None, hosts: Collection[str] | None = None) -> Starlette:
    """The application that answers for `service`.

    Args:
        key, hosts: as `questlm.serving.http.Guard`.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.scheduler.start()
        try:
            yield
        finally:
            service.scheduler.close(0)
            await run_sync(service.scheduler.join)

    routes: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/", service.page),
        ("GET", "/health", service.health),
        ("GET", "/metrics", service.numbers),
        ("GET", "/v1/models", service.models),
        ("GET", "/v1/models/{name:path}", service.one_model),
        ("POST", "/v1/completions", service.completions),
        ("POST", "/v1/chat/completions", service.chat_completions),
    ]
    guard = Middleware(Guard, service.metrics, key, hosts, [path for _, path, _ in routes])
    handlers: dict[Any, ExceptionHandler] = {ApiError: _refused, HTTPException: _no_such_path}
    return Starlette(
        routes=[Route(path, answer, methods=[method]) for method, path, answer in routes],
        middleware=[guard],
        exception_handlers=handlers,
        lifespan=lifespan,
    )


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError)
    return error_response(problem)


async def _no_such_path(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    what = f"{request.method} {quoted(request.scope['path'])}"
    return error_response(
        ApiError(problem.status_code, f"{what}: {problem.detail.lower()}; see /v1/models", headers=problem.headers)
    )
