"""Norms and activations that quantise for the layers behind them give what those layers would by themselves."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questlm import Llama, QuantSpec, ops, prepare, restore
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.ops import ResidualNorm, SwiGLU
from questlm.quant import dense, fake_quantize, set_quantization_strength
from questlm.quant.autograd import Rows
from questlm.quant.layers.fused import QuantizedNorm, QuantizedSwiGLU
from questlm.quant.layers.mode import Mode
from questlm.quant.swap import unfused

SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "mlp_hidden": 48, "vocab_size": 40}
BITS = (1, 2, 3, 4, 5, 6, 7, 8, "ternary")
SPECS = [
    *[QuantSpec(weight_bits=bits, act_bits=bits) for bits in BITS],
    QuantSpec(weight_bits=2, act_bits=8),
    QuantSpec(weight_bits=16, act_bits=4),
    QuantSpec(format="fp4"),
    QuantSpec(format="lloydmax", weight_bits=3, act_bits=3),
    QuantSpec(format="int-2:4"),
    QuantSpec(trust=1.1),
    QuantSpec(block_size=16),
    *[QuantSpec(method=method) for method in ("quest-noht", "quest-clip", "ste", "clip-ste", "quarot")],
    QuantSpec(weight_bits=4, act_bits=4, overrides={"attention.o": 8, "mlp.down": {"act_bits": 8}}),
]
PARTS = ("attention_norm", "mlp_norm", "mlp.activation")


def make(spec: QuantSpec | None = None, **shape: int) -> Llama:
    """A Llama whose norms have gains of their own and whose blocks matter to its logits."""
    torch.manual_seed(0)
    model = Llama(ModelConfig(**SHAPE | shape)).initialize(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "layers" in name:
                parameter.mul_(5)
    return model if spec is None else prepare(model, spec)


def ids(seed: int = 0) -> Tensor:
    return torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module) -> dict[str, Tensor]:
    """Logits, and the gradients of a loss."""
    model.zero_grad()
    logits = model(ids())
    F.cross_entropy(logits.flatten(0, 1).float(), ids(1).flatten()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))


def fused_parts(model: nn.Module) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, QuantizedNorm | QuantizedSwiGLU)}


def all_parts(*parts: str) -> set[str]:
    return {f"layers.{index}.{part}" for index in range(2) for part in parts}


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "auto"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.label}-{s.method}-{len(s.overrides)}")
def test_fused_equals_unfused(spec: QuantSpec, backend: str) -> None:
    model = make(spec)
    assert fused_parts(model) == all_parts(*PARTS)
    with ops.using_backend(backend):
        found = run(model)
        with unfused(model):
            expected = run(model)
        again = run(model)
    assert found.keys() == expected.keys() == {"logits", *dict(model.named_parameters())}
    assert torch.equal(found["logits"], expected["logits"])
    for name, want in expected.items():
        assert error(found[name], want) < 1e-5, name
        assert torch.equal(found[name], again[name]), name


@pytest.mark.parametrize("bits", [1, 4, 8, "ternary"])
def test_under_autocast_they_agree_to_its_rounding(bits: int | str) -> None:
    model = make(QuantSpec(weight_bits=bits, act_bits=bits))
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model)
        with unfused(model):
            expected = run(model)
    assert found["logits"].dtype is torch.bfloat16
    for name, want in expected.items():
        assert found[name].dtype is want.dtype
        assert error(found[name], want) < 2e-2, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_whole_model_in_another_dtype(dtype: torch.dtype) -> None:
    model = make(QuantSpec()).to(dtype)
    found = run(model)
    with unfused(model):
        expected = run(model)
    for name, want in expected.items():
        assert found[name].dtype is want.dtype is dtype
        assert error(found[name], want) < (1e-10 if dtype is torch.float64 else 3e-2), name


def test_evaluation_gives_the_same_without_gradients() -> None:
    model = make(QuantSpec())
    expected = model(ids()).detach()
    with torch.no_grad():
        assert torch.equal(model(ids()), expected)
    with torch.inference_mode():
        assert torch.equal(model.eval()(ids()), expected)


# Each module by itself, against the composition of its parts in float64


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_the_norm_equals_the_composition_of_its_parts(bits: int | str, adds: bool) -> None:
    model = make(QuantSpec(weight_bits=bits, act_bits=bits)).double()
    norm, layers = model.layers[0].attention_norm, (model.layers[0].attention.q, model.layers[0].attention.v)
    x, delta = (torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True) for _ in range(2))
    leaves = (x, *((delta,) if adds else ()), norm.weight, *(layer.weight for layer in layers))
    upstream = [torch.randn(2, 3, 32, dtype=torch.float64) for _ in range(2)]

    stream, rows = norm(x, delta) if adds else norm(x)
    assert isinstance(rows, Rows) and rows.shape == x.shape
    outputs = [layer(rows) for layer in layers]
    found_loss = (outputs[0] * upstream[0] + outputs[1].square()).sum() + (stream * upstream[1]).sum()
    found = torch.autograd.grad(found_loss, leaves)

    plain_stream = x + delta if adds else x
    normed = F.rms_norm(plain_stream, (32,), norm.weight, norm.eps)
    h = fake_quantize(normed, bits=bits, role="activation")
    products = [h @ fake_quantize(layer.weight, bits=bits).T for layer in layers]
    loss = (products[0] * upstream[0] + products[1].square()).sum() + (plain_stream * upstream[1]).sum()
    torch.testing.assert_close(stream, plain_stream)
    torch.testing.assert_close(found_loss, loss)
    for a, b in zip(found, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bits", BITS)
def test_the_whole_mlp_equals_the_composition_of_its_parts(bits: int | str) -> None:
    block = make(QuantSpec(weight_bits=bits, act_bits=bits)).double().layers[0]
    norm, mlp = block.mlp_norm, block.mlp
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    leaves = (x, norm.weight, mlp.gate.weight, mlp.up.weight, mlp.down.weight)
    dy = torch.randn(2, 3, 32, dtype=torch.float64)
    found = torch.autograd.grad(mlp(norm(x)[1]), leaves, dy)
    h = fake_quantize(F.rms_norm(x, (32,), norm.weight, norm.eps), bits=bits, role="activation")
    gate, up = (h @ fake_quantize(layer.weight, bits=bits).T for layer in (mlp.gate, mlp.up))
    a = fake_quantize(F.silu(gate) * up, bits=bits, role="activation")
    y = a @ fake_quantize(mlp.down.weight, bits=bits).T
    torch.testing.assert_close(mlp(norm(x)[1]), y)
    for a, b in zip(found, torch.autograd.grad(y, leaves, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", ["gate", "up", "down"])
def test_one_frozen_weight_of_an_mlp(frozen: str) -> None:
    model = make(QuantSpec())
    getattr(model.layers[0].mlp, frozen).weight.requires_grad_(False)
    found = run(model)
    with unfused(model):
        expected = run(model)
    assert found.keys() == expected.keys() and f"layers.0.mlp.{frozen}.weight" not in found
    for name, want in expected.items():
        assert error(found[name], want) < 1e-5, name


@pytest.mark.parametrize("bits", BITS)
def test_the_activation_equals_the_composition_of_its_parts(bits: int | str) -> None:
    model = make(QuantSpec(weight_bits=bits, act_bits=bits)).double()
    mlp = model.layers[0].mlp
    gate, up = (torch.randn(2, 3, 48, dtype=torch.float64, requires_grad=True) for _ in range(2))
    dy = torch.randn(2, 3, 32, dtype=torch.float64)
    rows = mlp.activation(gate, up)
    assert isinstance(rows, Rows) and rows.shape == gate.shape
    found = torch.autograd.grad(mlp.down(rows), (gate, up, mlp.down.weight), dy)
    h = fake_quantize(F.silu(gate) * up, bits=bits, role="activation")
    y = h @ fake_quantize(mlp.down.weight, bits=bits).T
    torch.testing.assert_close(mlp.down(rows), y)
    for a, b in zip(found, torch.autograd.grad(y, (gate, up, mlp.down.weight), dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("used", ["stream", "rows"])
def test_one_output_may_go_unused(used: str) -> None:
    block = make(QuantSpec()).layers[0]
    x, delta = torch.randn(3, 32, requires_grad=True), torch.randn(3, 32, requires_grad=True)
    stream, rows = block.attention_norm(x, delta)
    (stream if used == "stream" else block.attention.v(rows)).sum().backward()
    if used == "stream":
        assert torch.equal(x.grad, torch.ones(3, 32)) and torch.equal(delta.grad, torch.ones(3, 32))
        assert block.attention_norm.weight.grad is None or not block.attention_norm.weight.grad.any()
    else:
        assert torch.equal(x.grad, delta.grad) and x.grad.any() and block.attention_norm.weight.grad.any()


@pytest.mark.parametrize("frozen", ["x", "delta", "weight"])
def test_only_the_gradients_asked_for_are_made(frozen: str) -> None:
    block = make(QuantSpec()).layers[0]
    leaves = {"x": torch.randn(3, 32), "delta": torch.randn(3, 32), "weight": block.attention_norm.weight}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != frozen)
    stream, rows = block.attention_norm(leaves["x"], leaves["delta"])
    (block.attention.v(rows).sum() + stream.sum()).backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


def test_what_is_kept_for_the_backward_pass() -> None:
    block, saved = make(QuantSpec(), hidden=128, mlp_hidden=256).layers[0], []
    x, delta = torch.randn(64, 128, requires_grad=True), torch.randn(64, 128, requires_grad=True).bfloat16()
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        block.mlp_norm(x, delta)
    # x / rms in bf16, one bit an entry, a number a row, and the gain: never the stream in float32.
    assert sum(t.nbytes for t in saved) <= 64 * (128 * (2 + 1 / 8) + 4) + 128 * 4


# What is fused, and what is left alone


NOT_FUSED = {
    "norms of layers that disagree": (
        QuantSpec(overrides={"attention.k": {"act_bits": 8}, "mlp.up": {"act_bits": 2}}),
        ("mlp.activation",),
    ),
    "one layer left out": (QuantSpec(overrides={"attention.v": 16, "mlp.down": 16}), ("mlp_norm",)),
    "another method": (QuantSpec(overrides={"attention.v": {"method": "lsq"}}), ("mlp_norm", "mlp.activation")),
    "another trust": (
        QuantSpec(overrides={"mlp.gate": {"method": "quest-clip"}}),
        ("attention_norm", "mlp.activation"),
    ),
    "weights alone": (QuantSpec(act_bits=16), ()),
    "learned steps": (QuantSpec(method="lsq"), ()),
    "learned clips": (QuantSpec(method="pact"), ()),
    "learned centres": (QuantSpec(method="adabin", weight_bits=1, act_bits=1), ()),
    "a norm in each layer": (QuantSpec(method="bitnet", weight_bits="ternary", act_bits=8), ()),
    "a gradual schedule": (QuantSpec(method="extra-rmsnorm", weight_bits="ternary", act_bits=8), ()),
    "a gradual schedule of QuEST": (QuantSpec(gradual=0.5), ()),
    "other weights, the same input": (QuantSpec(overrides={"attention.k": {"weight_bits": 8}}), PARTS),
}


@pytest.mark.parametrize("case", NOT_FUSED)
def test_only_layers_that_quantise_their_input_alike_share_it(case: str) -> None:
    spec, parts = NOT_FUSED[case]
    model = make(spec)
    assert fused_parts(model) == all_parts(*parts)
    model(ids()).sum().backward()


def test_a_gradual_schedule_can_be_gone_through() -> None:
    model = make(QuantSpec(gradual=0.5))
    for done in (0.0, 0.3, 1.0):
        set_quantization_strength(model, done)
        model(ids()).sum().backward()


def test_float16_weights_are_not_fused() -> None:
    model = prepare(make().half(), QuantSpec())
    assert not fused_parts(model)


class Feedless(nn.Module):
    """The parts of an MLP, in a model that says nothing of what goes where."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.activation = ResidualNorm(32), SwiGLU()
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        x, normed = self.norm(x)
        return x + self.down(self.activation(self.gate(normed), self.up(normed)))


class PlainNorm(Feedless):
    """One that does, but whose norm is torch's, which takes no residual."""

    feeds = {"norm": ("gate", "up"), "activation": ("down",)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(32, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.down(self.activation(self.gate(normed), self.up(normed)))


def test_models_that_do_not_say_what_goes_where_are_left_alone() -> None:
    assert not fused_parts(prepare(Feedless(), QuantSpec()))
    model = prepare(PlainNorm(), QuantSpec())
    assert fused_parts(model) == {"activation"}
    x = torch.randn(3, 32)
    with unfused(model):
        expected = model(x)
    assert torch.equal(model(x), expected)


# Into the model and out again


@pytest.mark.parametrize("spec", SPECS[:3])
def test_names_and_tensors_of_the_state_dict_stay(spec: QuantSpec) -> None:
    model = make()
    before = dict(model.state_dict())
    after = prepare(model, spec).state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == tensor.data_ptr() for name, tensor in before.items())


def test_restore_gives_plain_modules_back() -> None:
    model = make()
    types = {name: type(module) for name, module in model.named_modules()}
    parameters, logits = dict(model.named_parameters()), model(ids())
    model.layers[0].mlp_norm.eval()
    prepare(model, QuantSpec())
    assert fused_parts(model) == all_parts(*PARTS)
    assert not model.layers[0].mlp_norm.training and model.layers[1].mlp_norm.training
    restore(model)
    assert {name: type(module) for name, module in model.named_modules()} == types
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(ids()), logits)
    assert not model.layers[0].mlp_norm.training and model.layers[1].mlp_norm.training
    assert model.layers[0].mlp_norm.eps == model.config.norm_eps


def test_dense_runs_the_plain_model_and_unfused_the_plain_norms() -> None:
    model = make()
    expected = run(model)
    prepare(model, QuantSpec(embeddings="float"))
    quantised = model(ids())
    with dense(model):
        found = run(model)
        with unfused(model):
            assert torch.equal(model(ids()), expected["logits"])
        assert torch.equal(model(ids()), expected["logits"])  # and still dense
    assert all(torch.equal(found[name], want) for name, want in expected.items())
    with pytest.raises(ZeroDivisionError), unfused(model):
        assert isinstance(model.layers[0].mlp_norm(torch.zeros(1, 32))[1], Tensor)
        raise ZeroDivisionError
    assert isinstance(model.layers[0].mlp_norm(torch.zeros(1, 32))[1], Rows)
    assert torch.equal(model(ids()), quantised)


def test_hooks_are_kept() -> None:
    model, called = make(), []
    model.layers[0].mlp_norm.register_forward_hook(lambda *_: called.append("norm"))
    model.layers[0].mlp.activation.register_forward_hook(lambda *_: called.append("activation"))
    prepare(model, QuantSpec())(ids())
    restore(model)(ids())
    assert called == ["norm", "activation"] * 2


def test_a_copy_is_independent() -> None:
    model = make(QuantSpec())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.layers[0].mlp_norm.weight.zero_()
        twin.layers[0].attention.v.weight.neg_()
    found = twin(ids())
    with unfused(twin):
        assert torch.equal(twin(ids()), found)
    assert not torch.equal(model(ids()), found)
    assert model.layers[0].mlp_norm.weight.any()


def test_prepared_on_meta_then_loaded() -> None:
    model = make()
    with torch.device("meta"):
        empty = prepare(Llama(model.config), QuantSpec())
    assert fused_parts(empty) == all_parts(*PARTS)
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty(ids()), prepare(model, QuantSpec())(ids()))


def test_one_dense_layer_gets_its_input_as_a_tensor_and_the_others_keep_their_numbers() -> None:
    model = make(QuantSpec())
    attention, x = model.layers[0].attention, torch.randn(2, 32)
    _, rows = model.layers[0].attention_norm(x)
    expected = attention.q(rows)
    with dense(attention.v):
        _, normed = model.layers[0].attention_norm(x)
        assert torch.equal(attention.v(normed), nn.functional.linear(normed, attention.v.weight))
        assert torch.equal(attention.q(normed), expected)
        model(ids()).sum().backward()


def test_a_layer_that_is_fused_cannot_fade_in() -> None:
    layer = make(QuantSpec()).layers[0].attention.v
    with pytest.raises(ConfigError, match=r"without a gradual schedule; set quant\.gradual"):
        layer.mode = Mode.FADING_IN


def test_a_gradient_of_a_gradient_is_refused_and_not_zero():
    model = make(QuantSpec())
    loss = model(ids()).square().sum()
    (gradient,) = torch.autograd.grad(loss, [model.embed.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
