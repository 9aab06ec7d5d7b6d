"""Weights quantised once for a whole optimizer step: the same losses, and the same gradients up to rounding."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from questlm import Llama, QuantSpec, ops, prepare
from questlm.config import ModelConfig
from questlm.errors import BackendError
from questlm.quant import FakeQuantLinear, cached_weights, dense, quantized_layers, set_quantization_strength
from questlm.quant.layers.mode import Mode
from questlm.quant.swap import unfused

SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "mlp_hidden": 48, "vocab_size": 40}
CACHED = [
    *[QuantSpec(weight_bits=bits, act_bits=bits) for bits in (1, 2, 3, 4, 5, 6, 7, 8, "ternary")],
    QuantSpec(weight_bits=2, act_bits=8),
    QuantSpec(weight_bits=8, act_bits=1),
    QuantSpec(weight_bits=4, act_bits=16),
    QuantSpec(format="fp4"),
    QuantSpec(format="lloydmax", weight_bits=3, act_bits=3),
    QuantSpec(format="int-2:4"),
    QuantSpec(block_size=16),
    QuantSpec(trust=1.1),
    *[QuantSpec(method=method) for method in ("quest-noht", "quest-clip", "ste", "clip-ste", "quarot")],
    *[QuantSpec(method=method, weight_bits="ternary", act_bits=8) for method in ("bitnet", "extra-rmsnorm")],
]
LEFT_ALONE = [
    QuantSpec(weight_bits=16, act_bits=4),
    QuantSpec(weight_bits=16, format="bf16-2:4"),
    QuantSpec(method="lsq"),
    QuantSpec(method="lsq-row"),
    QuantSpec(method="lsq+"),
    QuantSpec(method="pact"),
    QuantSpec(method="seq", weight_bits=2, act_bits=2),
    QuantSpec(method="adabin", weight_bits=1, act_bits=1),
    QuantSpec(method="pquant", weight_bits=1, act_bits=8),
]


def make(spec: QuantSpec, **shape: int) -> Llama:
    torch.manual_seed(0)
    model = Llama(ModelConfig(**SHAPE | shape)).initialize(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and "norm" not in name:
                parameter.mul_(5)
    return prepare(model, spec)


def step(model: nn.Module, count: int, cached: bool, forward: object = None) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses and summed gradients of `count` micro-batches."""
    model.zero_grad()
    losses = []
    with cached_weights(model) if cached else nullcontext():
        for index in range(count):
            ids = torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(index))
            logits = (model if forward is None else forward)(ids)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.roll(1).flatten()) / count
            loss.backward()
            losses.append(loss.detach())
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model: nn.Module, count: int, tolerance: float = 1e-5) -> None:
    """A step with cached weights is the step without."""
    losses, gradients = step(copy.deepcopy(model), count, cached=False)
    found_losses, found = step(model, count, cached=True)
    assert all(torch.equal(a, b) for a, b in zip(found_losses, losses, strict=True))
    assert found.keys() == gradients.keys()
    for name, want in gradients.items():
        assert found[name].dtype is want.dtype
        difference = (found[name].double() - want.double()).norm() / want.double().norm().clamp_min(1e-300)
        assert difference < tolerance, name
    assert all(layer.cached_weight is None for layer in quantized_layers(model).values())


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", CACHED, ids=lambda s: f"{s.label}-{s.method}")
def test_cached_weights_change_nothing(spec: QuantSpec, count: int) -> None:
    model = make(spec)
    assert all(layer.caches_weight for layer in quantized_layers(model).values())
    check(model, count)


@pytest.mark.parametrize("spec", LEFT_ALONE, ids=lambda s: f"{s.label}-{s.method}")
def test_weights_that_learn_or_are_not_codes_are_left_alone(spec: QuantSpec) -> None:
    model = make(spec)
    layers = quantized_layers(model).values()
    # pquant cuts the layers of its MLPs into branches, and holds none of them.
    assert not any(layer.caches_weight for layer in layers)
    with cached_weights(model):
        assert all(layer.cached_weight is None for layer in layers)
    check(model, 3, tolerance=1e-12)


def test_layers_of_several_kinds() -> None:
    overrides = {"attention.q": {"method": "lsq"}, "attention.v": 8, "mlp.up": 16, "mlp.down": {"weight_bits": 16}}
    model = make(QuantSpec(weight_bits=2, act_bits=4, overrides=overrides))
    assert {layer.caches_weight for layer in quantized_layers(model).values()} == {True, False}
    check(model, 3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_on_every_backend(backend: str) -> None:
    with ops.using_backend(backend):
        check(make(QuantSpec()), 2)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_under_autocast(bits: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check(make(QuantSpec(weight_bits=bits, act_bits=bits)), 3, tolerance=1e-2)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3), (torch.float64, 1e-12)]
)
def test_models_of_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    check(make(QuantSpec()).to(dtype), 3, tolerance)


def test_unfused_and_while_nothing_is_faded_in() -> None:
    model = make(QuantSpec())
    with unfused(model):
        check(model, 2)
    model = make(QuantSpec(gradual=0.5))
    set_quantization_strength(model, 0.3)
    assert not any(layer.caches_weight for layer in quantized_layers(model).values())
    check(model, 2)
    set_quantization_strength(model, 1.0)
    assert all(layer.caches_weight for layer in quantized_layers(model).values())
    check(model, 2)


def test_each_weight_is_quantised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encode_many, encode, shapes = make(QuantSpec()), ops.encode_many, ops.encode, []

    def count(xs: list[torch.Tensor]) -> None:
        shapes.extend(tuple(x.shape) for x in xs)

    monkeypatch.setattr(ops, "encode_many", lambda xs, *rest: count(xs) or encode_many(xs, *rest))
    monkeypatch.setattr(ops, "encode", lambda x, *rest: count([x]) or encode(x, *rest))
    weights = [tuple(layer.weight.shape) for layer in quantized_layers(model).values()]
    step(model, 3, cached=True)
    assert sorted(shape for shape in shapes if shape in weights) == sorted(weights)


def test_codes_are_those_of_the_beginning_of_the_block() -> None:
    model = make(QuantSpec())
    ids = torch.arange(6).view(1, 6)
    expected = model(ids)
    with cached_weights(model):
        with torch.no_grad():
            for layer in quantized_layers(model).values():
                layer.weight.neg_()
        assert torch.equal(model(ids), expected)
    assert not torch.equal(model(ids), expected)


def test_frozen_weights_and_weights_that_nothing_used() -> None:
    model = make(QuantSpec())
    model.layers[0].mlp.up.weight.requires_grad_(False)
    check(model, 2)
    model.zero_grad()
    with cached_weights(model):
        pass
    assert all(parameter.grad is None for parameter in model.parameters())
    with cached_weights(model):
        model.layers[0].mlp.gate(torch.randn(2, 32)).sum().backward()
    assert model.layers[0].mlp.gate.weight.grad is not None and model.layers[0].mlp.down.weight.grad is None


@pytest.mark.parametrize("cached", [True, False])
def test_a_bare_layer_without_activations_quantised(cached: bool) -> None:
    layer = prepare(nn.Linear(64, 8), QuantSpec(act_bits=16))
    with cached_weights(layer) if cached else nullcontext():
        layer(torch.ones(2, 64)).sum().backward()
    twin = copy.deepcopy(layer)
    twin.zero_grad()
    twin(torch.ones(2, 64)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)
    torch.testing.assert_close(layer.bias.grad, twin.bias.grad)


# What is refused, and what is left behind


def test_gradients_are_added_to_those_that_are_there() -> None:
    model, ids = make(QuantSpec()), torch.arange(6).view(1, 6)
    weight = model.layers[0].mlp.down.weight
    for _ in range(2):
        with cached_weights(model):
            (model(ids).sum() + weight.square().sum()).backward()  # one gradient through the layer, one past it
    found = weight.grad
    model.zero_grad()
    (2 * (model(ids).sum() + weight.square().sum())).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-5)


def test_through_parameters_a_gradient_that_is_there_already_is_refused() -> None:
    model = make(QuantSpec())
    step(model, 1, cached=True)
    cached = cached_weights(model, through_parameters=True)
    with pytest.raises(RuntimeError, match=r"without a gradient; call optimizer\.zero_grad"), cached:
        pytest.fail("entered")
    assert all(layer.cached_weight is None for layer in quantized_layers(model).values())


def test_a_dense_pass_is_refused_only_where_the_weight_itself_takes_the_gradient_of_the_codes() -> None:
    model, ids = make(QuantSpec()), torch.arange(6).view(1, 6)
    with dense(model):
        model(ids).sum().backward()
    expected = model.layers[0].mlp.down.weight.grad
    model.zero_grad()
    with cached_weights(model):
        cached = [layer.mode for layer in quantized_layers(model).values()]
        with dense(model):
            model(ids).sum().backward()
        assert all(layer.mode is mode for layer, mode in zip(quantized_layers(model).values(), cached, strict=True))
    assert torch.equal(model.layers[0].mlp.down.weight.grad, expected)
    model.zero_grad()
    refused = pytest.raises(RuntimeError, match="a dense pass inside cached_weights would leave its gradient masked")
    with cached_weights(model, through_parameters=True), refused, dense(model):
        pytest.fail("entered")
    assert all(layer.mode is Mode.QUANTIZED for layer in quantized_layers(model).values())


def test_weights_of_two_branches_are_never_cached() -> None:
    donor = make(QuantSpec())
    branched = make(QuantSpec(method="pquant", weight_bits=1, act_bits=8)).layers[0].mlp.gate
    with cached_weights(donor), pytest.raises(RuntimeError, match="without learned parameters"):
        branched.mode = donor.layers[0].mlp.gate.mode


def test_a_weight_shared_with_a_plain_layer_gets_both_gradients() -> None:
    def shared() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
        model[1].weight = model[0].weight
        return prepare(model, QuantSpec(), filter_fn=lambda module, name: name == "0")

    x, gradients = torch.randn(5, 32), []
    for context in (nullcontext, cached_weights):
        model = shared()
        with context(model) if context is cached_weights else context():
            model(x).square().sum().backward()
        gradients.append(model[0].weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_backward_pass_behind_the_block_is_refused() -> None:
    model = make(QuantSpec())
    with cached_weights(model):
        loss = model(torch.arange(6).view(1, 6)).sum()
    with pytest.raises(RuntimeError, match="do it inside cached_weights"):
        loss.backward()


def test_a_forward_pass_before_the_block_keeps_its_own_gradient() -> None:
    model, ids = make(QuantSpec()), torch.arange(6).view(1, 6)
    loss = model(ids).sum()
    with cached_weights(model):
        loss.backward()
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(ids).sum().backward()
    for got, want in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(got, want.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast_inside", [True, False])
def test_another_dtype_inside_is_refused(autocast_inside: bool) -> None:
    model, ids = make(QuantSpec()), torch.arange(6).view(1, 6)
    outer, inner = (torch.autocast("cpu", torch.bfloat16, enabled=on != autocast_inside) for on in (True, False))
    with outer, cached_weights(model), inner, pytest.raises(RuntimeError, match="enter cached_weights with autocast"):
        model(ids)
    assert all(layer.cached_weight is None for layer in quantized_layers(model).values())


def test_layers_are_released_when_an_exception_passes() -> None:
    model, ids = make(QuantSpec()), torch.arange(6).view(1, 6)
    expected = model(ids)
    with pytest.raises(ZeroDivisionError), cached_weights(model):
        assert all(layer.cached_weight is not None for layer in quantized_layers(model).values())
        model(ids).sum().backward()
        raise ZeroDivisionError
    assert all(layer.cached_weight is None for layer in quantized_layers(model).values())
    assert torch.equal(model(ids), expected)
    assert all(layer.weight.grad is None for layer in quantized_layers(model).values())  # half a step is none


def test_layers_are_released_when_one_cannot_be_quantised() -> None:
    model = prepare(nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 16)), QuantSpec(block_size=8))
    with ops.using_backend("triton"), pytest.raises(BackendError, match="rows of 24"), cached_weights(model):
        pytest.fail("entered")
    assert all(layer.cached_weight is None for layer in quantized_layers(model).values())


def test_cached_codes_are_no_part_of_the_state() -> None:
    model = make(QuantSpec())
    names = list(model.state_dict())
    with cached_weights(model):
        assert list(model.state_dict()) == names
        layer = model.layers[0].mlp.down
        assert isinstance(layer, FakeQuantLinear) and layer.cached_weight is not None
        assert not layer.cached_weight.operand.data.requires_grad


@pytest.mark.slow
def test_compiled_once_for_all_steps() -> None:
    model = make(QuantSpec(), layers=1)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for count in (1, 3):
        losses, gradients = step(model, count, cached=False)
        found_losses, found = step(model, count, cached=True, forward=compiled)
        assert counter.frame_count == 1
        torch.testing.assert_close(found_losses, losses)
        for name, want in gradients.items():
            torch.testing.assert_close(found[name], want, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
