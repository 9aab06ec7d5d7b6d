from __future__ import annotations

import importlib.util
import socket

import pytest

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.models import Llama
from questlm.serving import Server


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_json: str):
    shape = ModelConfig(layers=1, hidden=16, heads=1, mlp_hidden=16, vocab_size=257)
    path = tmp_path_factory.mktemp("artifact") / "tiny"
    pack(questlm.prepare(Llama(shape).initialize(0), QuantSpec(embeddings="bf16")), path, tokenizer=tokenizer_json)
    return path


def test_it_says_where_it_serves_and_gives_the_options_on(command, folder, monkeypatch) -> None:
    started: list[Server] = []
    monkeypatch.setattr(Server, "run", lambda self: started.append(self))
    code, _, err = command("serve", folder, "--port", "0", "--sequences", "3", "--context", "99", "--queue", "5")
    assert code == 0
    assert "serving tiny at http://127.0.0.1:" in err
    assert "warning" not in err
    limits = started[0]._service.limits
    assert (limits.sequences, limits.context, limits.queue) == (3, 99, 5)


def test_an_open_server_without_a_key_is_warned_of(command, folder, monkeypatch) -> None:
    monkeypatch.setattr(Server, "run", lambda self: None)
    assert "anyone who reaches 0.0.0.0" in command("serve", folder, "--port", "0", "--host", "0.0.0.0")[2]
    monkeypatch.setenv("QUESTLM_API_KEY", "0123456789")
    assert "warning" not in command("serve", folder, "--port", "0", "--host", "0.0.0.0")[2]


def test_an_empty_key_in_the_environment_does_not_open_the_server(command, folder, monkeypatch) -> None:
    monkeypatch.setattr(Server, "run", lambda self: None)
    monkeypatch.setenv("QUESTLM_API_KEY", "")
    code, _, err = command("serve", folder, "--port", "0", "--host", "0.0.0.0")
    assert code == 2
    assert "QUESTLM_API_KEY is empty" in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--api-key", "short"], "at least 8 printable ASCII characters"),
        (["--sequences", "0"], "sequences = 0 cannot be used"),
        (["--host", "no.such.host.invalid"], "cannot listen on 'no.such.host.invalid'"),
        (["--device", "nowhere"], "device = 'nowhere' cannot be used here"),
    ],
)
def test_options_that_cannot_be_used_are_refused(command, folder, words: list[str], reason: str) -> None:
    code, _, err = command("serve", folder, "--port", "0", *words)
    assert code == 2
    assert reason in err


def test_a_port_that_is_taken_is_refused_before_the_model_is_read(command, tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = command("serve", tmp_path / "none", "--port", taken.getsockname()[1])
    assert code == 2
    assert "cannot listen on '127.0.0.1', port" in err


def test_without_its_packages_it_names_the_extra(command, folder, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("questlm.cli.serve.find_spec", lambda name: None if name == "uvicorn" else found(name))
    code, _, err = command("serve", folder)
    assert code == 2
    assert "pip install 'questlm[serve]'" in err
