from __future__ import annotations

import json
from typing import Any

import pytest

from questlm.config import GenerationOptions
from questlm.serving.api_error import ApiError
from questlm.serving.requests import ChatRequest, CompletionRequest, parse_request


def completion(**fields: Any) -> CompletionRequest:
    return parse_request(json.dumps({"prompt": "a"} | fields).encode(), CompletionRequest)


def refusal(body: bytes | dict[str, Any], kind: type = CompletionRequest) -> tuple[str, str | None]:
    """Message and field of the error."""
    with pytest.raises(ApiError) as refused:
        parse_request(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    assert refused.value.status == 400
    error = refused.value.content["error"]
    assert error["type"] == "invalid_request_error"
    return error["message"], error["param"]


def test_what_is_not_named_is_as_in_quest_generate() -> None:
    assert completion().options(0, 128) == GenerationOptions()
    assert completion(user="me", metadata={"a": 1}, temperature=None, logprobs=0, tools=[]) == completion()


def test_options_have_the_names_of_openai_or_of_quest_generate() -> None:
    asked = completion(temperature=1, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2, seed=7, stop="x", n=2)
    expected = GenerationOptions(
        max_new_tokens=9, temperature=1.0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2, seed=8, stop=("x",)
    )
    assert asked.options(1, 9) == expected
    assert completion(stop=["a", "b"], ignore_eos=True).options(0, 1).stop == ("a", "b")
    assert not completion(ignore_eos=True).options(0, 1).stop_at_end
    assert completion(seed=2**63 - 1).options(1, 1).seed == 0


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
    ids=repr,
)
def test_prompts_are_a_text_ids_or_a_list_of_either(given: Any, prompts: Any) -> None:
    assert completion(prompt=given).prompt == prompts


def test_a_stop_string_that_is_no_unicode_is_refused() -> None:
    assert refusal({"prompt": "a", "stop": "\ud800"})[1] == "stop"


@pytest.mark.parametrize("value", [[], [[]], [1, "a"], ["a", [1]], {"a": 1}, 7, True, [True], [1.5]], ids=repr)
def test_other_prompts_are_refused(value: Any) -> None:
    message, param = refusal({"prompt": value})
    assert param == "prompt"
    assert "a text, a list of token ids, or a list of 1 to 128 of either is expected" in message


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("temperature", -1, "temperature = -1 cannot be used: input should be greater than or equal to 0"),
        ("temperature", "hot", "temperature = 'hot' cannot be used: input should be a valid number"),
        ("temperature", True, "temperature = True cannot be used"),
        ("max_tokens", 0, "max_tokens = 0 cannot be used: input should be greater than or equal to 1"),
        ("max_tokens", 2.5, "max_tokens = 2.5 cannot be used"),
        ("max_tokens", 10**30, "max_tokens = 1000000000000000000000000000000 cannot be used"),
        ("top_p", 1.5, "top_p = 1.5 cannot be used: input should be less than or equal to 1"),
        ("stop", [""], "a text or a list of at most 16 texts is expected"),
        ("stop", ["a"] * 17, "a text or a list of at most 16 texts is expected"),
        ("n", 129, "n = 129 cannot be used"),
        ("stream", "yes", "stream = 'yes' cannot be used: input should be a valid boolean"),
        ("stream_options", {"usage": True}, "unknown field 'stream_options.usage'"),
        ("logprobs", 5, "logprobs = 5 is not supported by this server; leave it out, or give False or 0"),
        ("frequency_penalty", 0.5, "frequency_penalty = 0.5 is not supported"),
        ("echo", True, "echo = True is not supported"),
        ("temprature", 1, "unknown field 'temprature'. Did you mean 'temperature'? The fields there are: ignore_eos"),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_is_allowed(field: str, value: Any, reason: str) -> None:
    message, param = refusal({"prompt": "a", field: value})
    assert reason in message
    assert param is not None
    assert param.startswith(field)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"prompt": "a", "prompt": "b"}', b"[" * 5000, b'"text"', b"[1]", b"NaN"], ids=repr
)
def test_what_is_no_object_of_json_is_refused(body: bytes) -> None:
    message, _ = refusal(body)
    assert "JSON" in message
    assert "damaged" not in message


def test_numbers_that_are_none_are_refused() -> None:
    assert "temperature" in refusal(b'{"prompt": "a", "temperature": NaN}')[0]
    assert "temperature" in refusal(b'{"prompt": "a", "temperature": 1e999}')[0]


def test_messages_of_a_chat() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": parts}], "max_tokens": 5}
    asked = parse_request(json.dumps(body).encode(), ChatRequest)
    assert [message.content for message in asked.messages] == ["x", "ab"]
    assert asked.limit == 5
    assert parse_request(json.dumps(body | {"max_completion_tokens": 6}).encode(), ChatRequest).limit == 6


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        ({}, "messages is missing", "messages"),
        ({"messages": []}, "messages = [] cannot be used", "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "'tool'", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing", "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "images", "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools", "tools"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(body: dict[str, Any], reason: str, param: str) -> None:
    message, field = refusal(body, ChatRequest)
    assert reason in message
    assert field == param


def test_every_value_that_is_accepted_makes_options() -> None:
    """The bounds are those of `GenerationOptions`, which would refuse a value with a name that clients do not know."""
    for field in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"):
        expected = GenerationOptions.model_json_schema()["properties"][field]
        found = CompletionRequest.model_json_schema()["properties"][field]
        bounds = [
            {key: branch[key] for branch in schema.get("anyOf", [schema]) for key in branch if "imum" in key}
            for schema in (expected, found)
        ]
        assert bounds[0] == bounds[1], field
