"""The native forward pass against the layers of the same packed model, by every instruction set of this processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import questlm
from helpers.packed_models import SHAPE, trained
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.grid import Grid
from questlm.inference import PackedModel
from questlm.models import KVCache
from questlm.ops.cpu import native
from questlm.ops.cpu.llama import NativeLlama, native_input

SETS = [] if native.unavailable() else native.instruction_sets()
EXACT = QuantSpec(act_bits=16, embeddings="bf16")  # no codes of inputs that rounding could flip
SHAPES = {
    "grouped heads": SHAPE,
    "heads of 10, one key head": ModelConfig(layers=1, hidden=32, heads=8, kv_heads=1, head_dim=10, vocab_size=61),
    "heads of 80": ModelConfig(layers=2, hidden=64, heads=2, head_dim=80, mlp_hidden=96, vocab_size=70),
    "tied head, scaled positions": ModelConfig(
        layers=1, hidden=64, heads=1, vocab_size=61, tied_head=True, rope_scaling={"kind": "linear", "factor": 4}
    ),
}


@pytest.fixture(autouse=True, scope="module")
def built() -> Iterator[None]:
    reason = native.unavailable()
    assert reason is None, f"{reason} (in a checkout: python setup.py build_ext --inplace)"
    before, threads = native.instruction_set(), torch.get_num_threads()
    yield
    native.use_instruction_set(before)
    torch.set_num_threads(threads)


def packed(folder: Path, spec: QuantSpec, shape: ModelConfig = SHAPE) -> PackedModel:
    if not folder.exists():
        pack(trained(spec, shape), folder)
    model = questlm.load(folder)
    assert model.not_native is None
    return model


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    return packed(tmp_path_factory.mktemp("packed") / "a", EXACT, SHAPES[request.param])


def new_cache(model: PackedModel, batch: int, capacity: int, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(model.config, batch, capacity, dtype, "cpu")


@torch.inference_mode()
def by_layers(model: PackedModel, ids: torch.Tensor, cache: KVCache, counts: torch.Tensor | None) -> torch.Tensor:
    return model._model.next_logits(ids, cache, counts)


def steps(model: PackedModel, run, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits of a ragged prompt of three sequences, and of two steps of a token each: (3, 3, vocabulary)."""
    ids, counts = torch.arange(24).view(3, 8) * 5 % 61, torch.tensor([8, 1, 5])
    cache = new_cache(model, 3, 10, dtype)
    found = [run(ids, cache, counts)]
    return torch.stack([*found, *(run(ids[:, i : i + 1], cache, None) for i in range(2))])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_logits_are_those_of_the_layers(model: PackedModel, name: str, threads: int) -> None:
    native.use_instruction_set(name)
    torch.set_num_threads(threads)
    assert model._native is not None
    expected = steps(model, lambda *step: by_layers(model, *step))
    assert relative(steps(model, model._native.next_logits), expected) < 3e-6


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.int8, 3e-5)])
def test_caches_in_fewer_bits(model: PackedModel, name: str, dtype: torch.dtype, tolerance: float) -> None:
    """In bfloat16 the layers round queries and probabilities, too."""
    native.use_instruction_set(name)
    assert model._native is not None
    expected = steps(model, lambda *step: by_layers(model, *step), dtype)
    assert relative(steps(model, model._native.next_logits, dtype), expected) < tolerance


def test_what_is_cached_is_what_the_layers_cache(model: PackedModel) -> None:
    assert model._native is not None
    for dtype in (torch.float32, torch.int8):
        ids, caches = torch.arange(12).view(2, 6), [new_cache(model, 2, 7, dtype) for _ in range(2)]
        model._native.next_logits(ids, caches[0], None)
        by_layers(model, ids, caches[1], None)
        numbers = [each.entries if each.scales is None else each.entries * each.scales for each in caches]
        step = 2e-6 if dtype is torch.float32 else 1.1 / 127
        assert relative(*numbers) < step
        assert torch.equal(caches[0].lengths, caches[1].lengths)


def test_the_batch_the_threads_and_the_pieces_of_a_prompt_change_no_bit(model: PackedModel) -> None:
    forward = model._native
    assert forward is not None
    ids = torch.arange(40).view(2, 20) * 3 % 61
    counts = torch.tensor([20, 13])
    torch.set_num_threads(1)
    alone = [
        forward.next_logits(row[None, :count], new_cache(model, 1, 24)) for row, count in zip(ids, counts, strict=True)
    ]
    torch.set_num_threads(3)
    assert torch.equal(forward.next_logits(ids, new_cache(model, 2, 24), counts), torch.cat(alone))
    cache = new_cache(model, 1, 24)
    for token in ids[0]:
        logits = forward.next_logits(token.view(1, 1), cache)
    assert torch.equal(logits, alone[0])


@pytest.mark.parametrize("name", SETS)
def test_long_contexts_in_ranges_of_keys(tmp_path: Path, name: str) -> None:
    """A step of one token takes ranges of 512 keys as pieces of their own, a step of many one after the other."""
    native.use_instruction_set(name)
    torch.set_num_threads(2)
    model = packed(tmp_path / "a", EXACT)
    forward = model._native
    assert forward is not None
    ids = torch.randint(0, 61, (2, 1201), generator=torch.Generator().manual_seed(0))
    cache, other = new_cache(model, 2, 1201), new_cache(model, 2, 1201)
    forward.next_logits(ids[:, :600], cache)
    forward.next_logits(ids[:, 600:1200], cache)
    last = forward.next_logits(ids[:, 1200:], cache)
    expected = by_layers(model, ids, other, None)
    assert relative(last, expected) < 1e-5
    assert torch.equal(forward.next_logits(ids, new_cache(model, 2, 1201)), last)


def test_many_tokens_are_multiplied_in_blocks(tmp_path: Path) -> None:
    """More than the 504 of which `packed` multiplies at most at once."""
    model = packed(tmp_path / "a", QuantSpec(embeddings="bf16"))
    assert model._native is not None
    ids = torch.randint(0, 61, (3, 400), generator=torch.Generator().manual_seed(0))
    found = model._native.next_logits(ids, new_cache(model, 3, 400))
    assert relative(found, by_layers(model, ids, new_cache(model, 3, 400), None)) < 2e-2
    assert torch.equal(found[:1], model._native.next_logits(ids[:1], new_cache(model, 1, 400)))


def test_rows_without_tokens_have_finite_logits_and_change_nothing(model: PackedModel) -> None:
    forward = model._native
    assert forward is not None
    ids = torch.tensor([[1, 2], [3, 4]])
    cache = new_cache(model, 2, 4)
    found = forward.next_logits(ids, cache, torch.tensor([2, 0]))
    assert torch.isfinite(found).all()
    assert cache.lengths.tolist() == [2, 0]
    assert torch.equal(found[0], forward.next_logits(ids[:1], new_cache(model, 1, 4))[0])
    assert torch.isfinite(forward.next_logits(ids, new_cache(model, 2, 4), torch.tensor([0, 0]))).all()


@pytest.mark.parametrize("wrong", [-1, 61, 2**40])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, wrong: int) -> None:
    model = packed(tmp_path / "a", EXACT)
    assert model._native is not None
    with pytest.raises(IndexError, match="token ids go from 0 to 60"):
        model._native.next_logits(torch.tensor([[1, wrong]]), new_cache(model, 1, 2))


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    model = packed(tmp_path / "a", EXACT)
    assert model._native is not None
    model._model.layers[1].mlp_norm.weight[3] = float("nan")
    logits = model._native.next_logits(torch.tensor([[1, 2]]), new_cache(model, 1, 2))
    assert not torch.isfinite(logits).all()


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = packed(tmp_path / "a", EXACT)
    assert model._native is not None
    linears, gains, embedding = (dict(each) for each in model._native._model._kept)
    shape = {"depth": 2, "hidden": 48, "heads": 2, "kv_heads": 1, "width": 24, "mlp": 64, "vocabulary": 61, "eps": 1e-5}
    NativeLlama(linears, gains, embedding, shape)
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate is \(64, 48\), and the model's shape makes it \(72, 48\)"):
        NativeLlama(linears, gains, embedding, shape | {"mlp": 72})
    with pytest.raises(ValueError, match="norm must be"):
        NativeLlama(linears, gains | {"norm": torch.ones(47)}, embedding, shape)
    with pytest.raises(ValueError, match=r"embed\.weight must be"):
        NativeLlama(linears, gains, {"weight": embedding["weight"].half()}, shape)


def test_inputs_that_native_code_cannot_round_have_a_reason() -> None:
    assert "absmean of all tokens" in str(native_input(Grid(3, 1.0, "absmean"), None, None, True))
    assert "learned" in str(native_input(Grid(4, None, "one"), None, None, True))
    assert "sparse" in str(native_input(Grid(4, 1.0, group=2), None, None, True))


def test_layers_of_other_kernels_are_no_part_of_it(tmp_path: Path) -> None:
    pack(trained(EXACT), tmp_path / "a")
    with questlm.ops.using_backend("reference"):
        model = questlm.load(tmp_path / "a")
    assert model.not_native == "layers.0.attention.q: its weight is not laid out for native kernels"
    assert model.generate_ids([1, 2], questlm.GenerationOptions(max_new_tokens=2))
    assert questlm.load(tmp_path / "a", dtype=torch.bfloat16).not_native is not None
