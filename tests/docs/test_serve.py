"""The page about serving: its clients talk to a running server, and its table is that of the record."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import questlm
from helpers.serving import address, running_server
from questlm.serving import Limits, Service

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "serve.md").read_text(encoding="utf-8")
USUAL = "127.0.0.1:8000"


def blocks(tag: str) -> list[str]:
    found = re.findall(rf"^```{tag}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def place(packed_model: Path) -> Iterator[str]:
    """Address of a server of a tiny model."""
    with running_server(Service(questlm.load(packed_model), "model", Limits())) as server:
        host, port = address(server)
        yield f"{host}:{port}"


def test_its_programs_run(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks("python server"):
        assert USUAL in block
        exec(compile(block.replace(USUAL, place), "docs/howto/serve.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_its_calls_of_curl_are_answered(place: str) -> None:
    for block in blocks("bash curl"):
        run = subprocess.run(["sh", "-c", block.replace(USUAL, place)], capture_output=True, text=True, check=True)
        assert json.loads(run.stdout)["usage"]["completion_tokens"] <= 20


def test_its_table_is_that_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    record = json.loads((ROOT / "benchmarks" / "results" / "serve-cpu.json").read_text(encoding="utf-8"))
    table = importlib.import_module("bench_serve").table(record)
    assert f"<!-- speeds -->\n\n{table}\n\n<!-- end of speeds -->" in PAGE


def test_its_limits_are_those_of_the_code() -> None:
    limits = Limits()
    assert (limits.sequences, limits.queue, limits.context, limits.shutdown_seconds) == (8, 64, 2048, 30)
    assert (limits.body_bytes, limits.client_seconds, limits.unread_pieces) == (2**20, 30, 4096)
