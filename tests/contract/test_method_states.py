"""Learned state at its edges: first tensors that say nothing, rows of zeros, and what a second model takes over."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from questlm import QuantSpec, prepare
from questlm.errors import CheckpointError
from questlm.quant import METHODS, make_quantizer

STATEFUL = [
    (name, role)
    for name, method in METHODS.items()
    for role in ("weight", "activation")
    if method.factor(role).learned and name != "pquant"
]


@pytest.mark.parametrize("first", [torch.zeros(4, 32), torch.full((4, 32), float("nan"))], ids=["zeros", "nan"])
@pytest.mark.parametrize(("name", "role"), STATEFUL)
def test_a_first_tensor_that_says_nothing_is_waited_out(name, role, first):
    quantizer, fresh = (make_quantizer(name, role=role, shape=(4, 32)) for _ in range(2))
    quantizer(first)
    assert not quantizer.initialized
    x = torch.randn(4, 32)
    assert torch.equal(quantizer(x), fresh(x))
    assert quantizer.initialized


@pytest.mark.parametrize("name", ["lsq-row", "seq"])
def test_a_row_of_zeros_begins_as_the_others_do(name):
    quantizer, x = make_quantizer(name, role="weight", shape=(4, 32)), torch.randn(4, 32)
    x[2] = 0
    quantizer(x)
    others = quantizer.scale.detach()[[0, 1, 3]]
    torch.testing.assert_close(quantizer.scale.detach()[2], others.mean(0))


@pytest.mark.parametrize("size", [1e-9, 1e-15, 1e20, 1e30])
@pytest.mark.parametrize(("name", "role"), STATEFUL)
def test_steps_are_learned_of_any_size(name, role, size):
    quantizer, x = make_quantizer(name, role=role, shape=(4, 32)), torch.randn(4, 32) * size
    values = quantizer(x)
    assert all(bool(p.isfinite().all()) for p in quantizer.parameters())
    if quantizer.initialized:
        assert 0 < (values - x).double().norm() / x.double().norm() <= 1


@pytest.mark.parametrize("name", [name for name, role in STATEFUL if role == "activation"])
def test_no_rows_at_all_change_nothing(name):
    quantizer = make_quantizer(name, role="activation", shape=(4, 32))
    x = torch.zeros(0, 32, requires_grad=True)
    quantizer(x).sum().backward()
    assert not quantizer.initialized
    quantizer(torch.randn(4, 32))
    quantizer(x).sum().backward()
    assert all(p.isfinite().all() for p in quantizer.parameters())


def prepared(method: str = "lsq", bits: int | str = 4, **settings: object) -> nn.Module:
    spec = QuantSpec(method=method, weight_bits=bits, act_bits=8 if method == "pquant" else bits, **settings)
    model = prepare(nn.ModuleDict({"mlp": nn.ModuleDict({"up": nn.Linear(32, 48)})}), spec)
    model["mlp"]["up"](torch.randn(4, 32))
    return model


@pytest.mark.parametrize(
    ("saved", "loading"),
    [
        ({"bits": 2}, {"bits": 4}),
        ({"method": "lsq"}, {"method": "pact"}),
        ({"method": "pact", "bits": "ternary", "format": "ternary"}, {"method": "pact", "bits": "ternary"}),
        ({"method": "lsq-row", "bits": 2}, {"method": "lsq-row", "bits": 3}),
        ({"method": "seq", "bits": 1}, {"method": "seq", "bits": 2}),
        ({"method": "lsq+", "bits": 2}, {"method": "lsq+", "bits": 3}),
        ({"method": "pquant", "bits": 1}, {"method": "pquant", "bits": 8}),
    ],
)
def test_a_state_learned_in_another_setting_is_refused_in_one_sentence(saved, loading):
    state, other = prepared(**saved).state_dict(), prepared(**loading)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"the state of 'mlp\.up\.\w+' was learned with '.*', but .* with '"):
        other.load_state_dict(state)
    assert torch.equal(
        other["mlp"]["up"].weight_quantizer.get_extra_state(), before["mlp.up.weight_quantizer._extra_state"]
    )
    prepared(**saved).load_state_dict(state)


@pytest.mark.parametrize(("method", "bits"), [("lsq", 4), ("adabin", 1), ("pquant", 1)])
def test_a_state_from_before_settings_were_named_loads(method, bits):
    model = prepared(method, bits)
    old = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("_extra_state")}
    assert len(old) < len(model.state_dict())
    other = prepared(method, bits)
    other.load_state_dict(old)
    x = torch.randn(2, 32)
    assert torch.equal(other["mlp"]["up"](x), model["mlp"]["up"](x))


def test_methods_that_learn_nothing_keep_plain_weights_only():
    assert set(prepared("quest", 2).state_dict()) == {"mlp.up.weight", "mlp.up.bias"}
    prepared("quest", 4).load_state_dict(prepared("quest", 2).state_dict())


def test_a_named_state_is_tensors_that_safetensors_takes(tmp_path):
    model = prepared()
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    prepared().load_state_dict(load_file(tmp_path / "state.safetensors"))


def test_a_state_that_was_cast_or_has_no_values_is_still_read():
    state = prepared().state_dict()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cast = {name: tensor.to(dtype) for name, tensor in state.items()}
        prepared().load_state_dict(cast)
        with pytest.raises(CheckpointError, match=r"learned with 'lsq, 4 bits, int', but"):
            prepared(bits=2).load_state_dict(cast)
    with torch.device("meta"):
        model = prepare(nn.ModuleDict({"up": nn.Linear(32, 48)}), QuantSpec(method="lsq"))
        assert model.state_dict()["up.weight_quantizer._extra_state"].device.type == "cpu"
        model.load_state_dict({name: tensor.to("meta") for name, tensor in model.state_dict().items()})
