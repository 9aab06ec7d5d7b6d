"""What a client is told when a request is refused, in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from questlm.errors import cleaned

__all__ = ["ApiError"]

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refused request: {"error": {"message", "type", "param", "code"}} with an HTTP status.

    Args:
        status: of HTTP.
        message: a sentence that names the field, its value and what is allowed.
        param: the field.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.content: dict[str, Any] = {
            "error": {"message": cleaned(message), "type": kind, "param": param, "code": code}
        }
