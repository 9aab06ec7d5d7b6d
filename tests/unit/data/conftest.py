"""A small corpus, a small tokenizer, and a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questlm.config import DataConfig
from questlm.data import train_tokenizer

SENTENCE = "the quick brown fox jumps över the lazy dog while 世界 sleeps and nothing much happens at all"


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Forty documents of different lengths, with characters of one to four bytes, none of them equal."""
    words = SENTENCE.split()
    return [" ".join(words[(i * j) % len(words)] for j in range(20 + i)) + f" {i} 🦊\n" for i in range(40)]


@pytest.fixture(scope="session")
def tokenizer_path(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(documents, 350).save(str(path))
    return path


@pytest.fixture
def corpus_file(documents: list[str], tmp_path: Path) -> Path:
    """The documents in one file, each followed by a separator line."""
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{document}<|endoftext|>\n" for document in documents), encoding="utf-8")
    return path


@pytest.fixture
def make_config(tmp_path: Path, tokenizer_path: Path) -> Callable[..., DataConfig]:
    def make(source: Path | str, **settings: Any) -> DataConfig:
        defaults = {"cache_dir": str(tmp_path / "cache"), "tokenizer": str(tokenizer_path), "val_fraction": 0.1}
        return DataConfig(source=str(source), **(defaults | settings))

    return make
