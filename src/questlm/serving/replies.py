"""What a client gets: OpenAI's objects for completions and for chat, whole and in pieces."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from questlm.serving.outbox import Ending
from questlm.serving.scheduler import Job

__all__ = ["END_OF_EVENTS", "ChatReply", "CompletionReply", "Reply", "event"]

END_OF_EVENTS = b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    """A server-sent event with JSON."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class Reply:
    """The answer to one request; subclasses say how OpenAI calls its parts.

    Attributes:
        prompt_tokens: of all prompts of the request, each counted once.
    """

    prefix = whole_object = piece_object = ""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, texts: Sequence[str], endings: Sequence[Ending]) -> dict[str, Any]:
        """The answer with all texts."""
        choices = [self._choice(index, self.text_part(text), endings[index].reason) for index, text in enumerate(texts)]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self._usage(endings)}

    def piece(self, index: int, text: str, ending: Ending | None) -> dict[str, Any]:
        """A part of the text `index`, which `ending` ends."""
        reason = None if ending is None else ending.reason
        return self._chunk([self._choice(index, self.piece_part(text), reason)])

    def first_pieces(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """What comes before any text."""
        return []

    def usage(self, endings: Sequence[Ending]) -> dict[str, Any]:
        """The last piece, which counts tokens."""
        return {**self._chunk([]), "usage": self._usage(endings)}

    def text_part(self, text: str) -> dict[str, Any]:
        """A whole text, in a choice."""
        return {"text": text}

    def piece_part(self, text: str) -> dict[str, Any]:
        """A piece of text, in a choice."""
        return {"text": text}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.piece_object, "choices": choices}

    def _choice(self, index: int, part: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": index, **part, "logprobs": None, "finish_reason": reason}

    def _usage(self, endings: Sequence[Ending]) -> dict[str, int]:
        generated = sum(ending.tokens for ending in endings)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }


class CompletionReply(Reply):
    """Of /v1/completions."""

    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"


class ChatReply(Reply):
    """Of /v1/chat/completions."""

    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def text_part(self, text: str) -> dict[str, Any]:
        """A whole message."""
        return {"message": {"role": "assistant", "content": text}}

    def piece_part(self, text: str) -> dict[str, Any]:
        """What is added to a message."""
        return {"delta": {"content": text} if text else {}}

    def first_pieces(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The role of each message."""
        part = {"delta": {"role": "assistant", "content": ""}}
        return [self._chunk([self._choice(index, part, None)]) for index in range(len(jobs))]
