"""Shared by the tests of diagnostics: a tiny model and tokens for it."""

from __future__ import annotations

import pytest
import torch

from questlm.config import ModelConfig
from questlm.diagnostics.layers import Batch
from questlm.models import Llama


@pytest.fixture
def model() -> Llama:
    """Two blocks of width 64 with fresh weights."""
    return Llama(ModelConfig(layers=2, hidden=64, heads=2, mlp_hidden=128, vocab_size=50)).initialize(0)


@pytest.fixture
def batches() -> list[Batch]:
    """Three batches of random tokens."""
    tokens = torch.randint(50, (3, 2, 17), generator=torch.Generator().manual_seed(0))
    return [(rows[:, :-1], rows[:, 1:]) for rows in tokens]
