"""Uploading against a server of this test, which speaks as much of the hub's protocol as an upload needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ArtifactError, ConfigError
from questlm.integrations.hub import push_to_hub

SHAPE = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=61)


class Hub(BaseHTTPRequestHandler):
    """Takes every file as a regular one, in the body of the commit."""

    files: dict[str, bytes]
    asked: list[tuple[str, Any]]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, lines[0] if lines else None))
        answer: dict[str, Any] = {}
        if self.refuses:
            self.send(403, {"error": "this token may not write"})
            return
        if self.path == "/api/repos/create":
            answer = {"url": f"{constants.ENDPOINT}/me/model", "name": "me/model"}
        elif "/preupload/" in self.path:
            named = [each["path"] for each in lines[0]["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
        elif "/commit/" in self.path:
            for line in lines:
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{constants.ENDPOINT}/me/model/commit/1", "commitOid": "1" * 40}
        self.send(200, answer)

    def send(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Own(Hub):
        files, asked = {}, []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_for_a_test")
    yield Own
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    model = questlm.prepare(questlm.Llama(SHAPE).initialize(0), QuantSpec())
    questlm.pack(model, folder / "packed", license="mit")
    questlm.pack(model, folder / "model.quest", single_file=True)
    (folder / "packed" / "notes.txt").write_text("of my own")
    return folder / "packed"


def test_the_files_of_the_model_are_sent(hub: type[Hub], packed: Path) -> None:
    address = push_to_hub(packed, "me/model", private=True)
    assert address == f"{constants.ENDPOINT}/me/model/commit/1"
    assert hub.asked[0] == (
        "/api/repos/create",
        {"name": "model", "organization": "me", "visibility": "private"},
    )
    expected = {path.name: path.read_bytes() for path in packed.iterdir() if path.name != "notes.txt"}
    assert "README.md" in expected
    assert hub.files == expected


def test_a_single_file_is_sent(hub: type[Hub], packed: Path) -> None:
    file = packed.with_name("model.quest")
    push_to_hub(file, "me/model")
    assert hub.files == {"model.quest": file.read_bytes()}


def test_what_the_hub_refuses_is_said(hub: type[Hub], packed: Path) -> None:
    hub.refuses = True
    with pytest.raises(ConfigError, match=r"the hub did not take .*403.*run `hf auth login`"):
        push_to_hub(packed, "me/model")
    with pytest.raises(ConfigError, match="'me/my/model' is no repository"):
        push_to_hub(packed, "me/my/model")


def test_nothing_is_sent_of_what_is_no_packed_model(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        push_to_hub(tmp_path, "me/model")
    assert not hub.asked
