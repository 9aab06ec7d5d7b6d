"""Token by token, in chunks or at once: the logits are the same."""

from __future__ import annotations

import pytest
import torch

from questlm import Llama, QuantSpec, prepare
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.models import KVCache

TOKENS = 11


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
    assert cache.length == TOKENS
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
        assert cache.length == 8
        torch.testing.assert_close(model(ids[:, 8:], cache), model(ids)[:, 8:], rtol=1e-5, atol=1e-5)


def test_room_grows_with_the_key_value_heads_only():
    _, _, cache = make(kv_heads=1)
    keys, values = cache.extend(0, torch.ones(2, 1, 3, 16), torch.zeros(2, 1, 3, 16))
    assert keys.shape == values.shape == (2, 1, 3, 16)
    assert keys.sum() == 2 * 3 * 16
    assert values.sum() == 0
    assert (cache.length, cache.capacity) == (0, TOKENS)  # not before advance


def test_memory_that_is_not_there_is_asked_for_in_a_sentence() -> None:
    config = ModelConfig(layers=2, hidden=64, heads=4, mlp_hidden=96, vocab_size=50)
    with pytest.raises(
        ConfigError, match=r"keys and values of 35,184,372,088,832 tokens need .*, which cpu does not have"
    ):
        KVCache(config, batch=1, capacity=2**45, dtype=torch.float32, device="cpu")
    cache = KVCache(config, batch=1, capacity=4, dtype=torch.float32, device="cpu")
    with pytest.raises(ConfigError, match="give a shorter prompt or ask for fewer tokens"):
        cache.reserve(2**45)
    assert cache.capacity == 4
