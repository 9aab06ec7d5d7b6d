"""Places where a quantised layer could quietly be something else than it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from questlm import Llama, QuantSpec, ops, prepare, restore
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.models import KVCache
from questlm.quant import fake_quantize, quantize

TINY = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=32, vocab_size=64)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_change_codes(dtype: torch.dtype, backend: str) -> None:
    x = torch.randn(64, 128).to(dtype)
    with ops.using_backend(backend):
        plain, plain_step = quantize(x)
        with torch.autocast("cpu", torch.bfloat16):
            codes, step = quantize(x)
    assert step.dtype == torch.float32
    assert torch.equal(codes, plain)
    assert torch.equal(step, plain_step)


def test_autocast_does_not_change_the_transform() -> None:
    x = torch.randn(64, 128)
    with torch.autocast("cpu", torch.bfloat16):
        rotated, back = ops.hadamard(x), ops.masked_hadamard(x.bfloat16(), None, 128)
    assert torch.equal(rotated, ops.hadamard(x))
    assert torch.equal(back, ops.masked_hadamard(x.bfloat16(), None, 128))


def test_an_encoder_layer_whose_fast_path_would_skip_quantisation_is_refused() -> None:
    encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
    with pytest.raises(ConfigError, match="set_fastpath_enabled"):
        prepare(encoder, QuantSpec())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        x = torch.randn(2, 5, 64)
        prepare(encoder, QuantSpec(weight_bits=1, act_bits=1)).eval()
        with torch.no_grad():
            torch.testing.assert_close(encoder(x), encoder.train()(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("autocast", [False, True])
def test_float16_stays_float16(autocast: bool) -> None:
    layer = prepare(nn.Linear(32, 32, dtype=torch.float32 if autocast else torch.float16), QuantSpec())
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        assert layer(torch.randn(2, 32).to(layer.weight.dtype)).dtype == torch.float16


def test_hooks_are_carried_over_and_back() -> None:
    model, hits = nn.Sequential(nn.Linear(16, 16)), []
    model[0].register_forward_hook(lambda *_: hits.append(1))
    prepare(model, QuantSpec())(torch.zeros(1, 16))
    restore(model)(torch.zeros(1, 16))
    assert len(hits) == 2


def test_tracing_with_fake_tensors_leaves_nothing_behind() -> None:
    with FakeTensorMode():
        ops.hadamard(torch.empty(2, 512), 512)
    assert ops.hadamard(torch.randn(2, 512), 512).isfinite().all()


def test_inference_mode_leaves_nothing_behind() -> None:
    with torch.inference_mode():
        ops.hadamard(torch.randn(2, 2048).double(), 2048)
    x = torch.randn(2, 2048).double().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.hadamard(x, 2048).square().sum(), x, create_graph=True)
    gradient.sum().backward()


def test_blocks_of_one_entry_use_the_trust_factor_without_transform() -> None:
    assert prepare(nn.Linear(16, 16), QuantSpec(weight_bits=1, block_size=1)).weight_quantizer.mask_bound == 1.25 / 2


def test_a_prepared_model_can_be_exported() -> None:
    model, x = prepare(nn.Sequential(nn.Linear(16, 16)), QuantSpec()).eval(), torch.randn(2, 16)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("scale", [1e-18, 1e-21, 1e-25, 1e18])
def test_backends_agree_at_extreme_scales(scale: float) -> None:
    x = torch.randn(3, 128) * scale
    with ops.using_backend("reference"):
        expected = fake_quantize(x)
    torch.testing.assert_close(fake_quantize(x), expected, rtol=1e-5, atol=0)


def test_a_cache_of_another_batch_is_refused() -> None:
    model = Llama(TINY).initialize(0)
    with torch.no_grad(), pytest.raises(ValueError, match="2 sequences, but 1"):
        model(torch.zeros(1, 4, dtype=torch.long), KVCache(TINY, 2, 8, torch.float32, "cpu"))


def test_weights_cannot_be_drawn_without_memory() -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="to_empty"):
        Llama(TINY).initialize(0)
