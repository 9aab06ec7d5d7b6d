"""Each path of a running server, by plain HTTP; `tests/integration/test_serving.py` has OpenAI's client and load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from helpers.serving import wait_until, web_client
from questlm.config import GenerationOptions
from questlm.errors import ConfigError
from questlm.inference import PackedModel
from questlm.serving import Limits, Server, Service

GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx2.Client]:
    with web_client(server) as client:
        yield client


def greedy(model: PackedModel, prompt: str | list[int], count: int = 12) -> str:
    options = GenerationOptions(max_new_tokens=count, temperature=0, stop_at_end=False)
    return model.generate(prompt, options)


def texts(reply: httpx2.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [choice["text"] for choice in reply.json()["choices"]]


def events(reply: httpx2.Response) -> list[Any]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("prompt", ["def f", "", "naïve 日本", [7, 8, 9], "long " * 60], ids=repr)
def test_greedy_text_is_that_of_generate(client: httpx2.Client, model: PackedModel, prompt: str | list[int]) -> None:
    reply = client.post("/v1/completions", json={"prompt": prompt, **GREEDY, "model": "tiny"})
    assert texts(reply) == [greedy(model, prompt)]
    body = reply.json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "tiny"
    assert body["choices"][0]["finish_reason"] == "length"
    length = len(model.prompt_ids(prompt))
    assert body["usage"] == {"prompt_tokens": length, "completion_tokens": 12, "total_tokens": length + 12}


def test_drawn_text_is_that_of_generate_with_its_seed(client: httpx2.Client, model: PackedModel) -> None:
    options = GenerationOptions(max_new_tokens=9, temperature=1.3, top_k=20, seed=5, stop_at_end=False)
    asked = {"max_tokens": 9, "temperature": 1.3, "top_k": 20, "seed": 5, "ignore_eos": True}
    expected = [model.generate("ab", options.model_copy(update={"seed": seed})) for seed in (5, 6, 7, 8)]
    assert texts(client.post("/v1/completions", json={"prompt": ["ab", "ab"], "n": 2, **asked})) == expected
    assert expected[:2] == model.generate(["ab", "ab"], options)


def test_a_stop_string_ends_the_text(client: httpx2.Client, model: PackedModel) -> None:
    whole = greedy(model, "stop", 40)
    stop = next(whole[i : i + 2] for i in range(3, 30) if whole.find(whole[i : i + 2]) == i)
    reply = client.post("/v1/completions", json={"prompt": "stop", **GREEDY, "max_tokens": 40, "stop": stop})
    assert texts(reply) == [whole[: whole.index(stop)]]
    assert reply.json()["choices"][0]["finish_reason"] == "stop"


def test_a_stream_holds_the_same_text_in_pieces(client: httpx2.Client, model: PackedModel) -> None:
    asked = {"prompt": ["one", "two 日本"], **GREEDY, "stream": True}
    parts = events(client.post("/v1/completions", json={**asked, "stream_options": {"include_usage": True}}))
    assert parts.pop()["usage"]["completion_tokens"] == 24
    found, reasons = ["", ""], [None, None]
    for part in parts:
        (choice,) = part["choices"]
        found[choice["index"]] += choice["text"]
        assert reasons[choice["index"]] is None
        reasons[choice["index"]] = choice["finish_reason"]
    assert found == [greedy(model, "one"), greedy(model, "two 日本")]
    assert reasons == ["length", "length"]
    assert all("usage" not in part for part in events(client.post("/v1/completions", json=asked)))


def test_a_chat_goes_on_behind_its_template(client: httpx2.Client, model: PackedModel) -> None:
    messages = [{"role": "developer", "content": "be short"}, {"role": "user", "content": "hi"}]
    asked = {"messages": messages, "temperature": 0, "max_completion_tokens": 12, "ignore_eos": True}
    expected = greedy(model, "<system>be short<|endoftext|><user>hi<|endoftext|><assistant>")
    reply = client.post("/v1/chat/completions", json=asked).json()
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": expected}
    parts = events(client.post("/v1/chat/completions", json={**asked, "stream": True}))
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == expected
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_models_are_described(client: httpx2.Client, model: PackedModel) -> None:
    (found,) = client.get("/v1/models").json()["data"]
    assert found["id"] == "tiny"
    assert found["packed_bytes"] == model.bytes
    assert found["has_chat_template"] is True
    assert client.get("/v1/models/tiny").json() == found
    assert client.get("/v1/models/other").status_code == 404


def error(reply: httpx2.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    found = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_what_does_not_fit_the_limits_is_refused(client: httpx2.Client) -> None:
    long = client.post("/v1/completions", json={"prompt": "a" * 390, "max_tokens": 11})
    assert error(long, 400) == {
        "message": "the prompt has 390 tokens and 11 more are asked for; this server allows 400 in all",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "context_length_exceeded",
    }
    longest = client.post("/v1/completions", json={"prompt": "a" * 400})
    assert error(longest, 400)["param"] == "prompt"
    assert client.post("/v1/completions", json={"prompt": "a" * 399}).json()["usage"]["completion_tokens"] <= 1
    assert "at most 10 can be" in error(client.post("/v1/completions", json={"prompt": "a", "n": 11}), 400)["message"]
    assert "257" in error(client.post("/v1/completions", json={"prompt": [257]}), 400)["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: httpx2.Client) -> None:
    assert "4096 bytes" in error(client.post("/v1/completions", json={"prompt": "a" * 5000}), 413)["message"]
    kind = {"content-type": "application/json"}
    pieces = (b" " * 1000 for _ in range(6))
    assert "4096 bytes" in error(client.post("/v1/completions", content=pieces, headers=kind), 413)["message"]
    assert error(client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}), 415)
    assert error(client.post("/v1/completions", content=b"{", headers=kind), 400)["code"] == "invalid_json"


def test_unknown_models_and_paths_are_not_found(client: httpx2.Client) -> None:
    assert error(client.post("/v1/completions", json={"prompt": "a", "model": "gpt"}), 404)["code"] == "model_not_found"
    assert "'/v2'" in error(client.get("/v2"), 404)["message"]
    reply = client.get("/v1/completions")
    assert "not allowed" in error(reply, 405)["message"]
    assert reply.headers["allow"] == "POST"


def test_a_full_queue_says_when_to_come_again(client: httpx2.Client, server: Server) -> None:
    endless = {"prompt": "a", "n": 10, "max_tokens": 399, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=endless) as streaming:
        assert streaming.status_code == 200
        reply = client.post("/v1/completions", json={"prompt": "a", "n": 7, "max_tokens": 1})
        assert error(reply, 429)["code"] == "queue_full"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
    wait_until(lambda: "questlm_sequences_running 0.0" in client.get("/metrics").text)
    assert "questlm_sequences_waiting 0.0" in client.get("/metrics").text


def test_health_and_numbers(client: httpx2.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    assert 'questlm_requests_total{path="/health",status="200"}' in reply.text


def test_a_failure_of_the_server_is_said_and_counted(client: httpx2.Client, monkeypatch, caplog) -> None:
    def fail(self: PackedModel, prompt: str) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(PackedModel, "prompt_ids", fail)
    assert error(client.post("/v1/completions", json={"prompt": "a"}), 500)["type"] == "server_error"
    assert "a fault" in caplog.text
    assert 'path="/v1/completions",status="500"} 1.0' in client.get("/metrics").text


def test_a_model_without_a_tokenizer_cannot_be_served_nor_one_without_a_template_chat(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "tokenizer", None)
    with pytest.raises(ConfigError, match="packed without a tokenizer"):
        Service(model, "tiny", Limits())
