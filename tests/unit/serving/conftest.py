from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer

import questlm
from helpers.serving import FakeBatch, running_server
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.inference import PackedModel
from questlm.models import Llama
from questlm.serving import Limits, Server, Service
from questlm.serving.metrics import Metrics
from questlm.serving.scheduler import Scheduler


@pytest.fixture
def start(tokenizer_json: str):
    """Start a scheduler over a batch, with limits; it has to end with the test, and every sequence has to leave."""
    started: list[tuple[Scheduler, FakeBatch]] = []

    def start(batch: FakeBatch, **limits: Any) -> tuple[Scheduler, Metrics]:
        metrics = Metrics()
        scheduler = Scheduler(batch, Tokenizer.from_str(tokenizer_json), Limits(**limits), metrics)
        started.append((scheduler, batch))
        scheduler.start()
        return scheduler, metrics

    yield start
    for scheduler, batch in started:
        scheduler.close(0)
        scheduler.join()
        assert not batch.sequences
        assert batch.removed == len(batch.joined)


TEMPLATE = """{% for message in messages %}<{{ message.role }}>{{ message.content }}<|endoftext|>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> PackedModel:
    """A tiny packed model of bytes, with a chat template."""
    shape = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=257)
    prepared = questlm.prepare(Llama(shape).initialize(0), QuantSpec(embeddings="bf16"))
    folder = tmp_path_factory.mktemp("served") / "tiny"
    pack(prepared, folder, tokenizer=tokenizer_json, chat_template=TEMPLATE)
    return questlm.load(folder)


@pytest.fixture(scope="session")
def server(model: PackedModel) -> Iterator[Server]:
    """A server of that model, with few places and a short queue."""
    service = Service(model, "tiny", Limits(sequences=4, context=400, queue=6, body_bytes=4096, shutdown_seconds=1))
    with running_server(service) as server:
        yield server
