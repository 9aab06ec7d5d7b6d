"""Shared by the tests of documents: a packed model that examples can load."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.data import train_tokenizer
from questlm.export.pack import pack
from questlm.models import Llama


@pytest.fixture(scope="session")
def packed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of one block, packed: enough to be loaded and to print something."""
    tokenizer: Tokenizer = train_tokenizer(["def load(path):\n    return path\n"] * 20, 300)
    shape = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=300)
    model = questlm.prepare(Llama(shape).initialize(0), QuantSpec(embeddings="bf16"))
    path = tmp_path_factory.mktemp("packed") / "model"
    pack(model, path, tokenizer=tokenizer.to_str())
    return path
