"""Token by token, in chunks or at once: the logits are the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from questlm import Llama, QuantSpec, prepare
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.memory import Memory
from questlm.models import KVCache

TOKENS = 11
_SUBNORMAL = 127 * 2.0**-126  # rows whose largest number is below it lose precision


def make(**shape) -> tuple[Llama, torch.Tensor, KVCache]:
    config = ModelConfig(**{"layers": 2, "hidden": 64, "heads": 4, "mlp_hidden": 96, "vocab_size": 50} | shape)
    model = Llama(config).initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():  # attention far from uniform
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    ids = torch.randint(0, 50, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    return model, ids, KVCache(config, batch=2, capacity=TOKENS, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("chunks", [[1] * TOKENS, [4, 4, 3], [TOKENS], [1, 6, 4], [10, 1]], ids=str)
@pytest.mark.parametrize("shape", [{}, {"kv_heads": 2}, {"kv_heads": 1, "head_dim": 32}, {"tied_head": True}], ids=str)
def test_logits_do_not_depend_on_how_the_tokens_arrive(shape, chunks):
    model, ids, cache = make(**shape)
    with torch.no_grad():
        full = model(ids)
        parts = torch.cat([model(part, cache) for part in ids.split(chunks, dim=1)], dim=1)
    assert cache.lengths.tolist() == [TOKENS, TOKENS]
    assert full.std() > 0.1
    torch.testing.assert_close(parts, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [[1] * TOKENS, [5, 6]], ids=str)
def test_quantized_tokens_do_not_depend_on_it_either(chunks):
    model, ids, _ = make()
    model = prepare(model, QuantSpec(weight_bits=8, act_bits=8)).double()
    cache = KVCache(model.config, batch=2, capacity=TOKENS, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        full = model(ids)
        parts = torch.cat([model(part, cache) for part in ids.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(parts, full, rtol=1e-7, atol=1e-7)


def test_room_is_checked_before_anything_is_written():
    model, ids, cache = make()
    with torch.no_grad():
        model(ids[:, :8], cache)
        with pytest.raises(ValueError, match=rf"holds {TOKENS} tokens, but 12 are needed"):
            model(ids[:, :4], cache)
        assert cache.lengths.tolist() == [8, 8]
        torch.testing.assert_close(model(ids[:, 8:], cache), model(ids)[:, 8:], rtol=1e-5, atol=1e-5)


def test_entries_are_those_of_the_key_value_heads():
    _, _, cache = make(kv_heads=1)
    keys, values = cache.step(2, 3).extend(0, torch.ones(2, 1, 3, 16), torch.zeros(2, 1, 3, 16))
    assert keys.shape == values.shape == (2, 1, 3, 16)
    assert cache.lengths.tolist() == [0, 0]  # not before advance
    cache.advance(3)
    keys, values = cache.step(2, 1).extend(0, torch.full((2, 1, 1, 16), 2.0), torch.zeros(2, 1, 1, 16))
    assert keys.shape == (2, 1, TOKENS, 16)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert values.sum() == 0


@pytest.mark.parametrize("shape", [{}, {"kv_heads": 2}], ids=str)
@pytest.mark.parametrize("lengths", [[3, 6], [6, 1], [2, 2]], ids=str)
def test_padding_behind_a_shorter_sequence_changes_nothing(shape, lengths):
    model, ids, cache = make(**shape)
    counts = torch.tensor(lengths)
    with torch.no_grad():
        alone = [model(row[None, : length + 3])[0] for row, length in zip(ids, lengths, strict=True)]
        steps = [model.next_logits(ids[:, : max(lengths)], cache, counts)]
        later = [ids.gather(1, (counts + step)[:, None]) for step in range(3)]
        steps += [model.next_logits(tokens, cache) for tokens in later]
    assert cache.lengths.tolist() == [length + 3 for length in lengths]
    for row, length in enumerate(lengths):
        got = torch.stack([step[row] for step in steps])
        torch.testing.assert_close(got, alone[row][length - 1 :], rtol=1e-5, atol=1e-5)


def test_a_sequence_may_have_no_token_in_a_step():
    model, ids, cache = make()
    with torch.no_grad():
        model.next_logits(ids[:, :4], cache, torch.tensor([4, 0]))
        logits = model.next_logits(ids[:, 4:7], cache, torch.tensor([3, 3]))
        torch.testing.assert_close(logits[0], model(ids[:1, :7])[0, -1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits[1], model(ids[1:, 4:7])[0, -1], rtol=1e-5, atol=1e-5)


def test_attention_reads_blocks_of_64_unless_told_to_read_all():
    config = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=50)
    cache = KVCache(config, 1, 200, torch.float32, "cpu")
    windows = []
    for tokens in (60, 4, 1, 100, 35):
        windows.append(cache.step(1, tokens).window)
        cache.advance(tokens)
    assert windows == [64, 64, 128, 192, 200]
    cache = KVCache(config, 1, 200, torch.float32, "cpu")
    cache.window = cache.capacity
    assert cache.step(1, 3).window == 200


def test_steps_of_one_token_are_compiled_once():
    model, ids, cache = make()
    cache.window = cache.capacity
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    with torch.no_grad():
        model(ids[:, :2], cache)
        model.layers[0].compile(backend=backend, fullgraph=True, dynamic=False)
        for token in ids[:, 2:8].split(1, dim=1):
            model.next_logits(token, cache)
    assert len(compiled) == 1


def test_a_step_reads_nothing_back_to_the_cpu():
    config = make()[0].config
    with torch.device("meta"):  # where a tensor has a shape, but no value that could be read
        model = Llama(config)
        cache = KVCache(config, batch=2, capacity=TOKENS, dtype=torch.float32, device="meta")
        model.next_logits(torch.zeros(2, 5, dtype=torch.long), cache, torch.zeros(2, dtype=torch.long))
        assert model.next_logits(torch.zeros(2, 1, dtype=torch.long), cache).shape == (2, 50)


DTYPES = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.int8: 0.1}
"""Dtypes of entries, and how far logits may be from those without a cache, as a share of the largest."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cache_may_be_of_another_dtype_than_the_model(dtype):
    model, ids, _ = make()
    cache = KVCache(model.config, 2, TOKENS, dtype, "cpu")
    with torch.no_grad():
        full = model(ids)
        parts = torch.cat([model(part, cache) for part in ids.split([4, 1, 6], dim=1)], dim=1)
    assert parts.dtype is torch.float32
    error = (parts - full).abs().max() / full.abs().max()
    assert error <= DTYPES[dtype]
    assert dtype is torch.float32 or error > 1e-5  # entries are rounded


@pytest.mark.parametrize("lengths", [[3, 6], [6, 1], [4, 4]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded_entries_are_the_same_however_the_tokens_arrive(dtype, lengths):
    model, ids, _ = make(kv_heads=2)
    counts = torch.tensor(lengths)
    at_once, by_steps = (KVCache(model.config, 2, TOKENS, dtype, "cpu") for _ in range(2))
    with torch.no_grad():
        expected = model(ids, at_once)
        steps = [model.next_logits(ids[:, : max(lengths)], by_steps, counts)]
        steps += [model.next_logits(ids.gather(1, (counts + step)[:, None]), by_steps) for step in range(3)]
    for row, length in enumerate(lengths):
        got = torch.stack([step[row] for step in steps])
        error = (got - expected[row, length - 1 : length + 3]).abs().max() / expected.abs().max()
        # float sums in another order can move a number over the edge of two codes
        assert error <= (1e-5 if dtype is torch.float32 else 2e-2)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from((0.0, 2.0**-140, 1e-30, 1.0, 1e30)))
def test_codes_are_each_heads_nearest_levels(seed: int, size: float):
    config = ModelConfig(layers=2, hidden=64, heads=4, kv_heads=2, mlp_hidden=96, vocab_size=50)
    cache = KVCache(config, 2, 5, torch.int8, "cpu")
    generator = torch.Generator().manual_seed(seed)
    keys, values = (size * torch.randn(2, 2, 3, 16, generator=generator) for _ in range(2))
    read = cache.step(2, 3).extend(1, keys, values)
    assert cache.entries.dtype is torch.int8
    assert cache.scales is not None and cache.scales.dtype is torch.float32
    assert cache.entries.shape == (2, 2, 2 * 5, 2, 16) and cache.scales.shape == (2, 2, 2 * 5, 2, 1)
    assert cache.entries.is_contiguous() and cache.scales.is_contiguous()
    assert not cache.entries[0].any() and not cache.scales[0].any()
    for which, new in enumerate((keys, values)):
        rows = (cache.entries[1, which] * cache.scales[1, which]).unflatten(0, (2, 5))
        assert torch.equal(rows[:, :3].transpose(1, 2), read[which]) and not rows[:, 3:].any()
        largest = new.abs().amax(-1, keepdim=True)
        assert ((read[which] - new).abs() <= largest * (0.5 + 1e-5) / 127 + _SUBNORMAL).all()


def test_numbers_that_are_not_finite_stay_so():
    config = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=50)
    for bad in (float("nan"), float("inf")):
        keys = torch.ones(1, 2, 1, 16)
        keys[0, 0, 0, 3] = bad
        read, _ = KVCache(config, 1, 4, torch.int8, "cpu").step(1, 1).extend(0, keys, keys)
        assert not read[0, 0].isfinite().all() and read[0, 1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_room_keeps_what_is_stored(dtype):
    model, ids, _ = make()
    cache = KVCache(model.config, batch=2, capacity=6, dtype=dtype, device="cpu")
    counts = torch.tensor([6, 3])
    with torch.no_grad():
        model.next_logits(ids[:, :6], cache, counts)
        cache.reserve(4)
        assert cache.capacity == 6
        cache.reserve(8)
        assert cache.capacity == 8
        later = [ids.gather(1, (counts + step)[:, None]) for step in range(2)]
        steps = torch.stack([model.next_logits(tokens, cache) for tokens in later])
        for row, length in enumerate(counts.tolist()):
            own = KVCache(model.config, batch=1, capacity=length + 2, dtype=dtype, device="cpu")
            alone = model(ids[row : row + 1, : length + 2], own)[0, length:]
            tolerance = 1e-5 if dtype is torch.float32 else 2e-2 * float(alone.abs().max())
            torch.testing.assert_close(steps[:, row], alone, rtol=1e-5, atol=tolerance)
        with pytest.raises(ValueError, match="holds 8 tokens, but 9 are needed"):
            model.next_logits(ids[:, :1], cache)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sequences_that_are_kept_go_on_as_they_were(dtype):
    model, ids, _ = make()
    ids = torch.cat((ids, ids.flip(1)))
    whole, dropped = (KVCache(model.config, batch=4, capacity=8, dtype=dtype, device="cpu") for _ in range(2))
    counts = torch.tensor([6, 3, 5, 1])
    with torch.no_grad():
        for cache in (whole, dropped):
            model.next_logits(ids[:, :6], cache, counts)
        dropped.keep([1, 3])
        assert dropped.lengths.tolist() == [3, 1]
        dropped.reserve(9)
        for step in range(3):
            new = ids[:, step, None]
            if step == 1:
                whole.reserve(9)
            got = model.next_logits(new[[1, 3]], dropped)
            torch.testing.assert_close(got, model.next_logits(new, whole)[[1, 3]], rtol=1e-5, atol=1e-5)
        dropped.keep([0, 1])
        assert dropped.lengths.tolist() == [6, 4]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_that_joins_in_the_room_of_another_begins_anew(dtype):
    model, ids, _ = make()
    cache = KVCache(model.config, batch=2, capacity=8, dtype=dtype, device="cpu")
    own = KVCache(model.config, batch=1, capacity=8, dtype=dtype, device="cpu")
    with torch.no_grad():
        model.next_logits(ids[:, :4], cache)
        model.next_logits(ids[1:, :4], own)
        cache.keep([1])
        cache.add()
        assert cache.lengths.tolist() == [4, 0]
        with pytest.raises(ValueError, match="room for 2 sequences, and holds as many"):
            cache.add()
        got = model.next_logits(ids[[1, 0], 4:7], cache, torch.tensor([1, 3]))
        torch.testing.assert_close(got[:1], model.next_logits(ids[1:, 4:5], own), rtol=1e-5, atol=1e-5)
        alone = KVCache(model.config, batch=1, capacity=8, dtype=dtype, device="cpu")
        torch.testing.assert_close(got[1:], model.next_logits(ids[:1, 4:7], alone), rtol=1e-5, atol=1e-5)


def test_a_known_length_makes_room_again_and_grown_memory_can_be_for_more_sequences():
    model, ids, _ = make()
    cache = KVCache(model.config, batch=2, capacity=4, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        model.next_logits(ids[:, :3], cache, torch.tensor([1, 1]))
        cache.keep([1])
        with pytest.raises(ValueError, match="holds 4 tokens, but 5 are needed"):
            cache.step(1, 2)
        cache.limit_length(1)
        assert cache.step(1, 2).positions.tolist() == [[1, 2]]
        stored = cache.entries[:, :, 0].clone()
        cache.reserve(6, sequences=3)
    assert cache.entries.shape[2] == 18
    assert torch.equal(cache.entries[:, :, 0], stored)
    cache.add()
    cache.add()
    assert cache.step(3, 1).slots.tolist() == [1, 6, 12]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_what_is_not_finite_is_erased(dtype):
    model, ids, _ = make()
    cache = KVCache(model.config, batch=2, capacity=8, dtype=dtype, device="cpu")
    with torch.no_grad():
        model.next_logits(ids[:, :4], cache)
    floats = cache.entries if cache.scales is None else cache.scales
    before = floats.clone()
    floats[0, 1, 2], floats[1, 0, 1] = float("nan"), float("inf")
    before[0, 1, 2] = before[1, 0, 1] = 0
    cache.erase_non_finite()
    assert torch.equal(floats, before)


def test_more_than_is_free_is_refused_though_linux_would_grant_it(monkeypatch) -> None:
    monkeypatch.setattr("questlm.models.cache.host_memory", lambda: Memory(2**20, 2**30))
    config = ModelConfig(layers=2, hidden=64, heads=4, mlp_hidden=96, vocab_size=50)
    cache = KVCache(config, batch=1, capacity=512, dtype=torch.float32, device="cpu")
    with pytest.raises(ConfigError, match=r"keys and values of 2,048 tokens need .*, which cpu does not have"):
        cache.reserve(2048)
    assert cache.capacity == 512


def test_memory_that_is_not_there_is_asked_for_in_a_sentence() -> None:
    config = ModelConfig(layers=2, hidden=64, heads=4, mlp_hidden=96, vocab_size=50)
    with pytest.raises(
        ConfigError, match=r"keys and values of 35,184,372,088,832 tokens need .*, which cpu does not have"
    ):
        KVCache(config, batch=1, capacity=2**45, dtype=torch.float32, device="cpu")
