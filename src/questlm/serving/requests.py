"""The bodies of requests: OpenAI's fields, of which some are not supported, and more options of `quest generate`.

What a request does not name is as in `quest generate`. A field that is unknown, or asks for what cannot be done, is
refused: a client should not believe that it had an effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from questlm.config import GenerationOptions
from questlm.errors import QuestError, nearest_name, quoted
from questlm.json_files import parse_json
from questlm.serving.api_error import ApiError

__all__ = ["ChatRequest", "CompletionRequest", "GenerationRequest", "parse_request"]

_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
_ONLY: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "parallel_tool_calls": (False, True),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields of OpenAI's that change nothing at these values or at null, and are refused at any other."""
_MOST_STOPS, _MOST_TEXTS = 16, 128

T = TypeVar("T", bound="GenerationRequest")


class StreamOptions(BaseModel):
    """What a streamed answer has beside its text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool = False
    include_obfuscation: bool = False  # of OpenAI's network, which a client may switch off


class GenerationRequest(BaseModel):
    """What requests for completions and for chat share."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: list[str] | None = None
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=_MOST_TEXTS)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if stops is None or (
            isinstance(stops, list) and len(stops) <= _MOST_STOPS and all(isinstance(s, str) and s for s in stops)
        ):
            return stops
        raise ValueError(f"a text or a list of at most {_MOST_STOPS} texts is expected, none of them empty")

    @field_validator("stop")
    @classmethod
    def _unicode(cls, value: list[str] | None) -> list[str] | None:
        try:
            "".join(value or ()).encode()
        except UnicodeEncodeError:  # JSON can name half of a character
            raise ValueError("a text of valid Unicode is expected") from None
        return value

    def options(self, number: int, max_new_tokens: int) -> GenerationOptions:
        """Options of the text `number` of this request; with a seed, each is drawn with one of its own."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "stop": None if self.stop is None else tuple(self.stop),
            "seed": None if self.seed is None else (self.seed + number) % 2**63,
        }
        named = {name: value for name, value in given.items() if value is not None}
        return GenerationOptions(max_new_tokens=max_new_tokens, stop_at_end=not self.ignore_eos, **named)

    @property
    def limit(self) -> int | None:
        """The most tokens asked for; None: not stated."""
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed answer ends with counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions."""

    prompt: list[str] | list[list[int]]

    @field_validator("prompt", mode="before")
    @classmethod
    def _list_of_prompts(cls, value: Any) -> Any:
        prompts = [value] if isinstance(value, str) or _is_list_of(int, value) else value
        is_list = isinstance(prompts, list) and 0 < len(prompts) <= _MOST_TEXTS
        if is_list and (_is_list_of(str, prompts) or all(_is_list_of(int, each) for each in prompts)):
            return prompts
        raise ValueError(f"a text, a list of token ids, or a list of 1 to {_MOST_TEXTS} of either is expected")


class Message(BaseModel):
    """A message of a chat; a list of parts is joined to one text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in value):
            return "".join(part["text"] for part in value)
        raise ValueError('a text or a list of {"type": "text", "text": ...} is expected; images and sound are not read')


class ChatRequest(GenerationRequest):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens asked for, by the new name of that field or the old one; None: not stated."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_request(body: bytes, kind: type[T]) -> T:
    """The request in a body of JSON.

    Raises:
        ApiError: 400, a sentence about the first fault.
    """
    try:
        values = parse_json(body, "the body", QuestError)
    except QuestError as problem:
        reason = str(problem).removesuffix("; it is damaged")
        raise ApiError(400, f"{reason}; send an object of JSON", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, f"the body is {quoted(values)}, but an object of JSON is expected", code="invalid_json")
    try:
        return kind.model_validate(_supported(values))
    except ValidationError as problem:
        raise _explained(problem, kind) from None


def _supported(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have an effect here, without those at null."""
    for name, allowed in _ONLY.items():
        value = values.get(name)
        if value is not None and value not in allowed:
            expected = " or ".join(map(repr, allowed))
            message = f"{name} = {quoted(value)} is not supported by this server; leave it out, or give {expected}"
            raise ApiError(400, message, param=name, code="unsupported_value")
    skipped = _IGNORED | set(_ONLY)
    return {name: value for name, value in values.items() if name not in skipped and value is not None}


def _explained(problem: ValidationError, kind: type[BaseModel]) -> ApiError:
    order = {"extra_forbidden": 0, "missing": 2}
    error = min(problem.errors(include_url=False), key=lambda each: order.get(each["type"], 1))
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        allowed = sorted(kind.model_fields)
        near = nearest_name(name, allowed)
        message = f"unknown field {quoted(name)}.{near} The fields there are: {', '.join(allowed)}"
        return ApiError(400, message, param=quoted(name)[1:-1], code="unknown_parameter")
    if error["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=name, code="missing_required_parameter")
    reason = error["msg"].removeprefix("Value error, ")
    message = f"{name} = {quoted(error['input'])} cannot be used: {reason[0].lower()}{reason[1:]}"
    return ApiError(400, message, param=name, code="invalid_value")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is kind for each in value)
