from __future__ import annotations

from pathlib import Path

import pytest

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny packed model, W4A4 with a head of bf16."""
    folder = tmp_path_factory.mktemp("packed") / "tiny"
    model = questlm.Llama(ModelConfig(layers=2, hidden=32, heads=2, mlp_hidden=48, vocab_size=41)).initialize(0)
    pack(questlm.prepare(model, QuantSpec(embeddings="bf16")), folder)
    return folder
