"""Quantised models under torch's own transforms: what works is quiet, and what does not says so in one sentence."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from questlm import Llama, QuantSpec, prepare
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.quant import dense, make_quantizer


def two_layers(method: str = "quest", bits: int = 4) -> nn.Module:
    layers = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    return prepare(layers, QuantSpec(method=method, weight_bits=bits, act_bits=bits))


@pytest.mark.parametrize("method", ["quest", "ste", "lsq"])
@pytest.mark.parametrize("transform", [torch.func.vmap, lambda model: torch.func.grad(lambda x: model(x).sum())])
def test_torch_func_is_refused_in_one_sentence(transform, method) -> None:
    model, x = two_layers(method), torch.randn(5, 3, 32)
    with pytest.raises(ConfigError, match=r"do not run under torch\.func"):
        transform(model)(x)
    with dense(model):
        assert transform(model)(x).isfinite().all()


@pytest.mark.parametrize("embeddings", ["float", "bf16"])
def test_a_whole_model_is_refused_alike(embeddings: str) -> None:
    model = Llama(ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=50)).initialize(0)
    prepare(model, QuantSpec(embeddings=embeddings))
    with pytest.raises(ConfigError, match=r"do not run under torch\.func"):
        torch.func.vmap(model)(torch.zeros(2, 1, 4, dtype=torch.long))


def test_a_quantiser_alone_is_refused_alike() -> None:
    with pytest.raises(ConfigError, match=r"do not run under torch\.func"):
        torch.func.vmap(make_quantizer(shape=(1, 32)))(torch.randn(5, 3, 32))


@pytest.mark.parametrize(("method", "bits"), [("lsq", 4), ("adabin", 1)])
def test_a_method_that_learns_may_be_compiled_before_its_first_batch(
    method: str, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    plain = two_layers(method, bits)
    compiled = two_layers(method, bits)
    compiled.load_state_dict(plain.state_dict())
    x, run = torch.randn(5, 32), torch.compile(compiled, backend="eager")
    with caplog.at_level(logging.WARNING):
        first, second = run(x), run(x)
    assert torch.equal(first, plain(x)) and torch.equal(second, plain(x))
    assert not caplog.records


def test_one_graph_before_the_first_batch_is_refused_with_what_to_do() -> None:
    torch._dynamo.reset()
    model, x = two_layers("lsq"), torch.randn(5, 32)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="run the model on one batch before it is compiled"):
        torch.compile(model, backend="eager", fullgraph=True)(x)
    model(x)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
