from __future__ import annotations

import asyncio
import socket

import httpx2
import pytest
from starlette.requests import Request

from helpers.serving import address, running_server, wait_until, web_client
from questlm.inference import PackedModel
from questlm.serving import Limits, Server, Service
from questlm.serving.api_error import ApiError
from questlm.serving.http import read_body, unless_gone

KEY = "0123456789abcdef"


def test_a_key_is_asked_for_where_there_is_one(model: PackedModel) -> None:
    with running_server(Service(model, "tiny", Limits()), KEY) as server, web_client(server) as client:
        for path in ("/v1/models", "/metrics"):
            for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
                reply = client.get(path, headers=given)
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                assert reply.json()["error"]["code"] == "invalid_api_key"
            assert client.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/health").status_code == client.get("/").status_code == 200
        assert client.get("/health", headers={"host": "any.name"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200), ("[::1]", 200),
     ("evil.example", 403), ("127.0.0.1.evil.example:80", 403), ("", 403)],
)  # fmt: skip
def test_pages_of_strangers_do_not_reach_a_loopback_server(server: Server, host: str, status: int) -> None:
    with web_client(server) as client:
        reply = client.get("/health", headers={"host": host})
    assert reply.status_code == status
    if status == 403:
        assert "localhost, 127.0.0.1, ::1 only" in reply.json()["error"]["message"]


def request_of(messages: list[dict], **headers: str) -> Request:
    """A request whose body comes as `messages`, and then nothing."""

    async def receive() -> dict:
        return messages.pop(0) if messages else await asyncio.sleep(60)

    named = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in named.items()]}
    return Request(scope, receive)


def body(data: bytes, more: bool = False) -> dict:
    return {"type": "http.request", "body": data, "more_body": more}


@pytest.mark.parametrize(
    ("messages", "headers", "status"),
    [
        ([body(b"x" * 1025)], {}, 413),
        ([body(b"x" * 700, True), body(b"x" * 700)], {}, 413),
        ([], {"content_length": "1025"}, 413),
        ([], {"content_length": "9" * 5000}, 413),
        ([], {"content_length": "-1"}, 413),
        ([body(b"x", True)], {}, 408),
        ([body(b"x", True), {"type": "http.disconnect"}], {}, 400),
        ([], {"content_type": "application/x-www-form-urlencoded"}, 415),
        ([], {"content_type": ""}, 415),
    ],
)
def test_bodies_that_are_too_large_or_do_not_come_are_refused(messages, headers, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(read_body(request_of(messages, **headers), Limits(body_bytes=1024, client_seconds=0.05)))
    assert refused.value.status == status


def test_a_body_in_pieces_is_joined() -> None:
    request = request_of([body(b"ab", True), body(b"", True), body(b"c")], content_type="Application/JSON; charset=x")
    assert asyncio.run(read_body(request, Limits())) == b"abc"


def test_work_for_a_client_that_leaves_is_cancelled() -> None:
    ended: list[str] = []

    async def work(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.append("end")
        return "done"

    gone = request_of([body(b""), {"type": "http.disconnect"}])
    assert asyncio.run(unless_gone(gone, work(60))) is None
    assert asyncio.run(unless_gone(request_of([]), work(0))) == "done"
    assert ended == ["end", "end"]

    async def fail() -> None:
        raise ApiError(500, "no")

    with pytest.raises(ApiError):
        asyncio.run(unless_gone(request_of([]), fail()))


def send(server: Server, asked: str, receive_buffer: int | None = None) -> socket.socket:
    """A raw connection that has sent a request."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(address(server))
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(asked)}\r\n\r\n{asked}".encode())
    return connection


ENDLESS = '{"prompt": "a", "max_tokens": 30000, "ignore_eos": true, "stream": %s}'


def ended(client: httpx2.Client, reason: str) -> bool:
    return f'questlm_sequences_total{{reason="{reason}"}} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_vanishes_is_not_computed_for(model: PackedModel, stream: str) -> None:
    limits = Limits(sequences=1, context=32000)
    with running_server(Service(model, "tiny", limits)) as server, web_client(server) as client:
        connection = send(server, ENDLESS % stream)
        wait_until(lambda: "questlm_sequences_running 1.0" in client.get("/metrics").text)
        connection.close()
        wait_until(lambda: ended(client, "cancelled"))
        assert client.post("/v1/completions", json={"prompt": "b", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    ("reason", "limits"),
    [("unread", {"unread_pieces": 50}), ("cancelled", {"client_seconds": 0.3})],
)
def test_a_client_that_does_not_read_loses_its_place_and_no_other_waits_for_it(model, reason: str, limits) -> None:
    service = Service(model, "tiny", Limits(sequences=2, context=32000, **limits))
    with (
        running_server(service, send_buffer=4096) as server,
        web_client(server) as client,
        send(server, ENDLESS % "true", receive_buffer=2048),
    ):
        assert client.post("/v1/completions", json={"prompt": "b", "max_tokens": 20}).status_code == 200
        wait_until(lambda: ended(client, reason))
        assert "questlm_sequences_running 0.0" in client.get("/metrics").text
        if reason == "cancelled" and hasattr(socket, "TCP_USER_TIMEOUT"):
            wait_until(lambda: len(server.server_state.connections) == 1)  # that of `client`
