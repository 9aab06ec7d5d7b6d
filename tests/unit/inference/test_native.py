"""When a packed model's steps are one native call, and what they do to the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import questlm
from helpers.packed_models import trained
from questlm.config import QuantSpec
from questlm.export.pack import pack
from questlm.inference import native
from questlm.inference.native import NativeForward
from questlm.models import KVCache
from questlm.ops.machine import unavailable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(trained(QuantSpec(embeddings="bf16")), tmp_path / "a")
    return tmp_path / "a"


def test_a_packed_model_on_the_cpu_has_one(folder: Path) -> None:
    model = questlm.load(folder)
    assert model.not_native is None
    assert isinstance(model._native, NativeForward)


def test_the_reason_why_not_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert questlm.load(folder, dtype=torch.bfloat16).not_native == "it computes in float32, not in torch.bfloat16"
    monkeypatch.setattr("questlm.ops.dispatch.unavailable", lambda backend: "no library")
    assert questlm.load(folder).not_native == "no library"


def test_a_step_counts_its_tokens_and_refuses_more_than_there_is_room_for(folder: Path) -> None:
    model = questlm.load(folder)
    assert model._native is not None
    cache = KVCache(model.config, 2, 4, torch.float32, "cpu")
    model._native.next_logits(torch.tensor([[1, 2, 3], [4, 0, 0]]), cache, torch.tensor([3, 1]))
    assert cache.lengths.tolist() == [3, 1]
    with pytest.raises(ValueError, match="holds 4 tokens, but 5 are needed"):
        model._native.next_logits(torch.tensor([[1, 2], [3, 4]]), cache)
    with pytest.raises(ValueError, match="for 2 sequences, but 1 were given"):
        model._native.next_logits(torch.tensor([[1]]), cache)


def test_positions_beyond_the_first_table_are_computed_when_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(12)[None]
    whole = questlm.load(folder)
    assert whole._native is not None
    expected = whole._native.next_logits(ids, KVCache(whole.config, 1, 12, torch.float32, "cpu"))
    monkeypatch.setattr(native, "_FIRST_POSITIONS", 4)
    model = questlm.load(folder)
    assert model._native is not None
    assert torch.equal(model._native.next_logits(ids, KVCache(model.config, 1, 12, torch.float32, "cpu")), expected)


def test_a_batch_goes_on_with_some_of_its_sequences(folder: Path) -> None:
    assert unavailable("cpu") is None
    model = questlm.load(folder)
    forward, ids = model._native, torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert forward is not None
    cache, alone = (KVCache(model.config, batch, 4, torch.float32, "cpu") for batch in (3, 1))
    forward.next_logits(ids, cache)
    forward.next_logits(ids[2:], alone)
    cache.keep([0, 2])
    both = forward.next_logits(torch.tensor([[7], [8]]), cache)
    assert torch.equal(both[1:], forward.next_logits(torch.tensor([[8]]), alone))
