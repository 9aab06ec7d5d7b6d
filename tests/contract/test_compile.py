"""A compiled model is the eager model: one graph, the same logits and gradients, nothing rounded differently."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from questlm import Llama, QuantSpec, ops, prepare
from questlm.config import ModelConfig
from questlm.quant.weight_cache import cached_weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("bits", [4, 1])
def test_compiled_model_equals_the_eager_one(bits):
    config = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=32, vocab_size=48)
    model = prepare(Llama(config).initialize(0), QuantSpec(weight_bits=bits, act_bits=bits, embeddings="bf16"))
    with torch.no_grad():  # large enough that a bf16 rounding left out would show
        model.lm_head.weight.mul_(50)
    ids = torch.randint(0, 48, (2, 7), generator=torch.Generator().manual_seed(0))

    def run(module: nn.Module) -> dict[str, torch.Tensor]:
        model.zero_grad()
        logits = module(ids)
        nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        return {"logits": logits.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}

    eager = run(model)
    torch._dynamo.reset()
    compiled = run(torch.compile(model, fullgraph=True))
    for name, expected in eager.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        model.embed.stored_dtype = model.lm_head.stored_dtype = "float"
        unrounded = (model(ids) - eager["logits"]).abs().max()
    assert unrounded > 1e-3  # so the comparison above would have seen it


# Every kind of quantiser once.
SPECS = [
    *[QuantSpec(weight_bits=bits, act_bits=bits) for bits in (4, 8, "ternary")],
    *[QuantSpec(method=method) for method in ("quarot", "lsq+", "pact")],
    QuantSpec(method="adabin", weight_bits=1, act_bits=1),
    QuantSpec(method="pquant", weight_bits=1, act_bits=8),
    QuantSpec(method="extra-rmsnorm", weight_bits="ternary", act_bits=8),
    QuantSpec(format="fp4"),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize(("spec", "autocast"), [(SPECS[0], True), *[(spec, False) for spec in SPECS]], ids=str)
def test_compiled_blocks_and_feed_forwards_have_the_gradients_of_plain_ones(spec, autocast):
    # As training runs them. Without the compiler behind, which is the slow part: what is lost is lost in tracing.
    whole = autocast or spec.method == "lsq+"  # what quantises in the attention is traced like what does beside it
    layers = 2 if whole else 1  # that a block is not taken for another, two kinds show
    config = ModelConfig(layers=layers, hidden=32, heads=2, mlp_hidden=48, vocab_size=48)
    model = prepare(Llama(config).initialize(0), spec)
    ids = torch.randint(0, 48, (2, 8), generator=torch.Generator().manual_seed(0))

    def run() -> dict[str, torch.Tensor]:
        model.zero_grad()
        backend, half = ops.using_backend("reference"), torch.autocast("cpu", torch.bfloat16, enabled=autocast)
        with backend, half, cached_weights(model):
            loss = model(ids, targets=ids)[0]
            loss.backward()
        return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}

    model(ids)  # by which quantisers that learn take their first steps
    expected = run()
    torch._dynamo.reset()
    for block in model.layers:
        (block if whole else block.mlp).compile(backend="aot_eager", dynamic=False)
    for name, found in run().items():
        torch.testing.assert_close(found, expected[name], rtol=0.02, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_reference_compiles_with_two_block_sizes_in_one_graph():
    # What a GPU without kernels runs. Constants by name once collided here, and a no-op conversion once lost gradients.
    model = prepare(nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 16)), QuantSpec())
    x = torch.randn(4, 32, requires_grad=True)
    with ops.using_backend("reference"):
        model(x).square().sum().backward()
        expected = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
        x.grad = None
        model.zero_grad()
        torch.compile(model, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    for got, wanted in zip([x.grad, *(p.grad for p in model.parameters())], expected, strict=True):
        torch.testing.assert_close(got, wanted)
