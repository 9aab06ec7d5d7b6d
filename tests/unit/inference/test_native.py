"""When a packed model's steps are one native call, and what they do to the cache."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import questlm
from helpers.packed_models import trained
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
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


@pytest.mark.parametrize("tied_head", [False, True])
def test_an_embedding_of_packed_codes_is_looked_up_layer_by_layer(tmp_path: Path, tied_head: bool) -> None:
    shape = ModelConfig(layers=1, hidden=32, heads=2, vocab_size=61, tied_head=tied_head)
    pack(trained(QuantSpec(embeddings="int4"), shape), tmp_path / "a")
    model = questlm.load(tmp_path / "a")
    assert model.not_native == "embed: its rows are packed codes, which only torch looks up"
    assert len(model.generate_ids([1, 2], GenerationOptions(max_new_tokens=3, stop_at_end=False))) == 3


def test_angles_that_another_thread_replaces_stay_as_long_as_a_step_needs_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = questlm.load(folder)
    forward = model._native
    assert forward is not None
    held: list[bool] = []
    step = forward._model.step

    def replaced(ids: torch.Tensor, counts: torch.Tensor | None, cache: Any) -> torch.Tensor:
        used = [weakref.ref(each) for each in forward._angles]
        forward._angles = forward._angles_of(8)
        held.append(all(each() is not None for each in used))
        return step(ids, counts, cache)

    monkeypatch.setattr(forward._model, "step", replaced)
    forward.next_logits(torch.tensor([[1, 2]]), KVCache(model.config, 1, 4, torch.float32, "cpu"))
    assert held == [True]


def test_what_native_code_would_read_beyond_is_refused(folder: Path) -> None:
    model = questlm.load(folder)
    forward = model._native
    assert forward is not None
    ids = torch.tensor([[1, 2], [3, 4]])

    def step(ids: torch.Tensor, counts: torch.Tensor | None = None, config: ModelConfig = model.config) -> torch.Tensor:
        return forward.next_logits(ids, KVCache(config, 2, 4, torch.float32, "cpu"), counts)

    assert step(ids, torch.tensor([0, 2])).shape == (2, model.config.vocab_size)
    for counts in ([-1, 2], [3, 2]):
        with pytest.raises(ValueError, match="counts must be from 0 to 2"):
            step(ids, torch.tensor(counts))
    with pytest.raises(ValueError, match=r"counts must be int64 \(2,\)"):
        step(ids, torch.tensor([2]))
    with pytest.raises(ValueError, match=r"ids must be int64 \(2, 2\)"):
        step(ids.int())
    with pytest.raises(ValueError, match="the cache has layers"):
        step(ids, config=model.config.model_copy(update={"layers": model.config.layers + 1}))
