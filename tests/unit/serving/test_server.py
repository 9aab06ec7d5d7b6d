from __future__ import annotations

import socket

import pytest

from questlm.errors import ConfigError
from questlm.serving.server import is_loopback, listen


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("LocalHost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_an_address_is_loopback_or_open_to_others(host: str, found: bool) -> None:
    assert is_loopback(host) is found


def test_a_free_port_is_found_and_idle_clients_are_ended_by_the_system() -> None:
    with listen("127.0.0.1", 0, 1.5) as listener:
        assert listener.getsockname()[1] > 0
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            with socket.create_connection(listener.getsockname()):
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on '127.0.0.1', port {port}: .*name a free port"):
            listen("127.0.0.1", port, 1)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 300, "\0", "999.1.1.1"])
def test_an_address_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen(host, 0, 1)
