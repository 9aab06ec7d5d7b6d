"""What a server allows its clients, each as a number that stops one of them from taking everything."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from questlm.config.section import Section

__all__ = ["Limits"]


class Limits(Section):
    """Limits of a server.

    Raises:
        ConfigError: a value out of range, or an unknown name.
    """

    sequences: Annotated[int, Field(ge=1, le=1024)] = Field(default=8, description="texts generated at once")
    context: Annotated[int, Field(ge=2, le=2**20)] = Field(
        default=2048, description="most tokens of a prompt and its text together"
    )
    queue: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=64, description="texts that may wait for one of those places; more are refused"
    )
    body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = Field(
        default=2**20, description="most bytes of a request's body"
    )
    shutdown_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=30.0, description="how long running requests may take to finish after SIGTERM or Ctrl-C"
    )
    client_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=30.0, description="how long a client may neither send its request nor read what it is sent"
    )
    unread_pieces: Annotated[int, Field(ge=1, le=2**20)] = Field(
        default=4096, description="pieces of text that may wait for a client that does not read; it is cancelled then"
    )
