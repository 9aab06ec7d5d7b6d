"""Fading quantisation in: layer by layer, to exactly the quantised model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from questlm import QuantSpec, prepare
from questlm.errors import ConfigError
from questlm.export.pack import pack
from questlm.quant import cached_weights, dense, quantized_layers, set_quantization_strength

X = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))


def model(**settings) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Linear(32, 32) for _ in range(3)])
    return prepare(layers, QuantSpec(**{"gradual": 0.5, **settings}))


def strengths(prepared: nn.Module) -> list[float]:
    return [float(layer.strength) for layer in quantized_layers(prepared).values()]


@pytest.mark.parametrize(
    ("done", "expected"), [(0.0, [0, 0, 0]), (0.25, [1, 0.5, 0]), (0.375, [1, 1, 0.5]), (0.5, [1, 1, 1]), (1, [1] * 3)]
)
def test_first_layers_come_first(done, expected):
    prepared = model()
    set_quantization_strength(prepared, done)
    assert strengths(prepared) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["quest", "lsq", "bitnet"])
def test_it_goes_from_the_plain_product_to_the_quantised_one(method):
    widths = {"weight_bits": "ternary", "act_bits": 8}
    prepared, whole = model(method=method, **widths), model(method=method, gradual=0, **widths)
    prepared(X), whole(X)  # learned steps begin
    set_quantization_strength(prepared, 0.0)
    with dense(whole):
        torch.testing.assert_close(prepared(X), whole(X), rtol=1e-4, atol=1e-5)
    set_quantization_strength(prepared, 0.5)
    assert torch.equal(prepared(X), whole(X))


def test_halfway_is_halfway_with_a_gradient():
    torch.manual_seed(0)
    linear = nn.Linear(32, 8, bias=False)
    layer = prepare(linear, QuantSpec(method="ste", gradual=1.0))
    set_quantization_strength(layer, 0.25)
    x = X.clone().requires_grad_()
    from questlm.quant import fake_quantize

    w = linear.weight
    mixed_x, mixed_w = (z + 0.5 * (fake_quantize(z, "ste") - z) for z in (x, w))
    expected = mixed_x @ mixed_w.T
    torch.testing.assert_close(layer(x), expected)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0])


def test_a_loaded_model_goes_on_fading():
    prepared, again = model(), model()
    set_quantization_strength(prepared, 0.2)
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(again(X), prepared(X))


@pytest.mark.parametrize("block", [dense, cached_weights])
def test_strength_is_not_changed_inside_a_block_that_would_undo_it(block):
    prepared, faded = model(), model()
    set_quantization_strength(faded, 0.2)
    with block(prepared):
        for change in (lambda: set_quantization_strength(prepared, 0.2), lambda: load(prepared, faded)):
            with pytest.raises(RuntimeError, match="outside"):
                change()
    load(prepared, faded)
    assert torch.equal(prepared(X), faded(X))


def load(into: nn.Module, source: nn.Module) -> None:
    into.load_state_dict(source.state_dict())


def test_a_model_that_is_still_fading_is_not_packed(tmp_path):
    from questlm import Llama
    from questlm.config import ModelConfig

    llama = Llama(ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=50)).initialize(0)
    prepare(llama, QuantSpec(gradual=0.5, embeddings="bf16"))
    set_quantization_strength(llama, 0.3)
    with pytest.raises(ConfigError, match="still being faded in"):
        pack(llama, tmp_path / "a")
    set_quantization_strength(llama, 0.5)
    pack(llama, tmp_path / "a")


def test_without_a_schedule_there_is_nothing_to_save():
    assert not any("strength" in name for name in model(gradual=0).state_dict())
