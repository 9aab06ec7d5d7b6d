from __future__ import annotations

import socket
import time

import pytest

from helpers.serving import address, running_server, web_client
from questlm.inference import PackedModel
from questlm.inference.batch import RunningBatch
from questlm.serving import Limits, Server, Service


@pytest.fixture(scope="module")
def hasty(model: PackedModel):
    with running_server(Service(model, "tiny", Limits(context=400, client_seconds=0.2))) as server:
        yield server


WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", WHOLE[:-2], WHOLE + b"GET"], ids=["nothing", "half", "half-behind-a-whole-one"])
def test_a_client_that_sends_no_whole_request_is_cut_off(hasty: Server, sent: bytes) -> None:
    with socket.create_connection(address(hasty), timeout=3) as connection:
        connection.sendall(sent)
        while connection.recv(4096):  # raises TimeoutError where the server keeps the connection
            pass


def test_a_client_that_waits_for_its_answer_is_not(hasty: Server, monkeypatch) -> None:
    step = RunningBatch.step

    def slow(self: RunningBatch):
        time.sleep(0.4)
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", slow)
    with web_client(hasty) as client:
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
