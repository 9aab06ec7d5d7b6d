"""Run the application on a socket until a signal, and end it cleanly."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

import uvicorn

from questlm.errors import ConfigError, quoted
from questlm.serving.app import Service, create_app
from questlm.serving.connection import connections_ending_after

__all__ = ["Server", "is_loopback", "listen"]

_MORE_SECONDS = 5  # for what has been computed to be sent
_WAITING_CONNECTIONS = 2048


def listen(host: str, port: int, client_seconds: float) -> socket.socket:
    """A socket that listens on `host` and `port` (0: any free one).

    Args:
        client_seconds: how long what is sent may wait for a client that does not read; the system ends the connection
            then, where it can (Linux).

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * client_seconds))
            listener.bind(address)
            listener.listen(_WAITING_CONNECTIONS)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise ConfigError(
            f"cannot listen on {quoted(host)}, port {port}: {reason}; name a free port (--port) and an address of this "
            "machine (--host)"
        ) from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Server(uvicorn.Server):
    """Serves a packed model on a socket; `run` returns after SIGTERM, Ctrl-C, or when `should_exit` is set.

    Then it takes no more requests, and gives those that run `limits.shutdown_seconds` to end; what has not ended by
    then is answered with an error.

    Attributes:
        name: of the model.

    Args:
        host: the address that was listened on.
        key: which clients must name; None: none.
    """

    def __init__(self, service: Service, listener: socket.socket, host: str, key: str | None = None) -> None:
        self._service, self._listener, self.name = service, listener, service.name
        hosts: Collection[str] | None = None
        if key is None and is_loopback(host):
            hosts = dict.fromkeys(("localhost", "127.0.0.1", "::1", host.lower()))
        super().__init__(
            uvicorn.Config(
                create_app(service, key, hosts),
                http=connections_ending_after(service.limits.client_seconds),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(service.limits.shutdown_seconds) + _MORE_SECONDS,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on the listening socket."""
        super().run(sockets or [self._listener])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: called by uvicorn."""
        self._service.scheduler.close(self._service.limits.shutdown_seconds)
        await super().shutdown(sockets)
