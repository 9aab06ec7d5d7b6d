"""From the messages of a chat to the text that a model continues, by the template that is packed with it.

A template is a program of whoever made the model: it runs in jinja2's sandbox, with what transformers gives it, and is
ended where it takes too long. Its memory is not limited.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from questlm.errors import ConfigError

__all__ = ["ChatTemplate"]

_SECONDS = 2.0  # of the thread's CPU time; a template needs milliseconds
_MARK = "questlm marks the end of a turn"


class _TooLong(BaseException):
    """A template takes too long; no Exception, as jinja2 turns some of those into values."""


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Raise _TooLong from what is called inside, before a line of Python, after `seconds` of this thread's CPU time.

    jinja2's sandbox limits neither loops nor macros that call themselves, and a thread cannot be ended from outside.
    One operation in C is not interrupted.
    """
    end, tracing = time.thread_time() + seconds, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise _TooLong
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracing)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, by which trainers find the model's words; it is what it holds."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders messages as transformers does.

    Attributes:
        ends: ids of the special tokens that end a turn of the model.

    Args:
        source: in the language of jinja2.

    Raises:
        ConfigError: it does not compile.
    """

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as problem:
            raise ConfigError(f"the model's chat template cannot be read: {problem}") from None
        self.ends = self._ends_of_turn(tokenizer)

    def render(self, messages: Sequence[Mapping[str, str]], continues: bool = True) -> str:
        """The text behind which the model writes the next message.

        Args:
            messages: each with "role" and "content".
            continues: end where the model's next message begins.

        Raises:
            ConfigError: the template refuses these messages, or fails.
        """
        try:
            with _ended_after(_SECONDS):
                return self._template.render(messages=list(messages), tools=None, add_generation_prompt=continues)
        except _TooLong:
            raise ConfigError(
                f"the model's chat template takes more than {_SECONDS:g} s for these messages; send fewer, or use "
                "/v1/completions"
            ) from None
        except Exception as problem:  # a template may do anything that Python's operators can
            raise ConfigError(f"the model's chat template cannot render these messages: {problem}") from None

    def _ends_of_turn(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The first special token behind what a model wrote, if any."""
        try:
            text = self.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK}], False)
        except ConfigError:
            return frozenset()
        behind = text.rpartition(_MARK)[2]
        special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        places = {i: behind.find(content) for i, content in special.items() if content and content in behind}
        return frozenset(sorted(places, key=lambda i: (places[i], -len(special[i])))[:1])


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _refuse(message: str) -> None:
    raise TemplateError(message)
