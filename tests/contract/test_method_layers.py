"""Whole layers of every method against the oracle's composition: output, gradients, learned numbers, reloading."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.method_oracles import (
    LEARNED,
    NORMED,
    WEIGHT_FORMATS,
    Case,
    NoOracleError,
    Norm,
    answer,
    layer_answer,
    normed,
    pair_up,
    rows,
)
from questlm import QuantSpec, prepare
from questlm.quant import METHODS

K, OUT, TOKENS = 96, 7, 6
ASYMMETRIC = {(1, 8), (8, 1), (2, 4), (4, 2), (4, 8), ("ternary", 8)}


def ends_and_middle(bits: tuple) -> set:
    ordered = sorted(bits, key=lambda b: 1.6 if b == "ternary" else b)
    return {ordered[0], ordered[len(ordered) // 2], ordered[-1]}


def layers() -> list[tuple[Case, Case]]:
    found = []
    for name, method in METHODS.items():
        w_bits, a_bits = method.weight.bits, method.act.bits
        w_some, a_some = ends_and_middle(w_bits), ends_and_middle(a_bits)
        pairs = {
            (w, a) for w, a in product(w_bits, a_bits) if (w, a) in ASYMMETRIC or (w == a and w in w_some | a_some)
        }
        pairs = pairs or set(product(w_some, a_some))
        pairs |= {(w, 16) for w in w_some} | {(16, a) for a in a_some}
        found += [(Case(name, "weight", w), Case(name, "activation", a)) for w, a in sorted(pairs, key=str)]
        for form, w, a in (("fp4", 4, 4), ("lloydmax", 2, 4), ("fp4", 4, 16), ("int-2:4", 4, 4), ("bf16-2:4", 16, 4)):
            if form in method.formats:
                act_form = "int" if form in WEIGHT_FORMATS or a == 16 else form
                found.append((Case(name, "weight", w, form), Case(name, "activation", a, act_form)))
    return found


LAYERS = layers()
ONE_EACH = [*{weight.method: (weight, act) for weight, act in LAYERS}.values()]
# What a layer saves depends on its method, on which factors are quantised, in which format, and on whether to one bit.
SAVED = [*{(w.method, w.format, w.bits == 16, a.bits == 16, 1 in (w.bits, a.bits)): (w, a) for w, a in LAYERS}.values()]


def name_of(case: Case | bool) -> str:
    return str(case)


def make_layer(weight: Case, act: Case, seed: int = 0, bias: bool = True) -> nn.Module:
    linear = nn.Linear(K, OUT, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(rows(seed, OUT, K))
    act_form = None if act.bits == 16 else act.format
    spec = QuantSpec(
        method=weight.method, weight_bits=weight.bits, act_bits=act.bits, format=weight.format, act_format=act_form
    )
    layer = prepare(linear, spec)
    if weight.method in NORMED:
        with torch.no_grad():
            layer.input_norm.weight.copy_(rows(seed + 1, 1, K)[0])
    return layer


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want.reshape(got.shape), rtol=1e-8, atol=1e-8)


def start(layer: nn.Module, side: str, case: Case, x: torch.Tensor) -> dict[str, nn.Parameter]:
    """The learned numbers of one quantizer, initialised from x and then moved so that entries are clipped."""
    parameters = [p for name, p in layer.named_parameters() if name.startswith(f"{side}_quantizer.")]
    learned = pair_up(parameters, case, x, answer(case, x, x).learned) if parameters else {}
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(0.6)
    return learned


@pytest.mark.parametrize(
    ("weight", "act", "bias"), [(*pair, True) for pair in LAYERS] + [(*pair, False) for pair in ONE_EACH], ids=name_of
)
def test_output_and_gradients_equal_the_oracle(weight, act, bias):
    layer = make_layer(weight, act, bias=bias)
    x, dy = rows(2, TOKENS, K), rows(3, TOKENS, OUT)
    w, b = layer.weight.detach(), layer.bias.detach() if bias else None
    norm = Norm(layer.input_norm.weight.detach(), layer.input_norm.eps) if weight.method in NORMED else None
    try:
        if weight.method in LEARNED:
            layer(x)
        learned = start(layer, "weight", weight, w), start(layer, "act", act, x)
        numbers = [{n: p.detach() if p.numel() > 1 else p.detach().squeeze() for n, p in s.items()} for s in learned]
        want, *sides = layer_answer(weight, act, x, w, b, dy, norm, tuple(n or None for n in numbers))
    except NoOracleError as error:
        pytest.fail(str(error))
    x.requires_grad_()
    y = layer(x.view(2, 3, K))
    y.backward(dy.view(2, 3, OUT))
    got = {"y": y.detach(), "dx": x.grad, "dw": layer.weight.grad}
    got |= {"db": layer.bias.grad} if bias else {}
    got |= {"dgain": layer.input_norm.weight.grad} if norm else {}
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].abs().max() > 0, name
        close(got[name], want[name])
    for parameters, side in zip(learned, sides, strict=True):
        assert parameters.keys() == side.grads.keys()
        for name, parameter in parameters.items():
            close(parameter.grad, side.grads[name])
    assert sum(map(len, learned)) == len([*layer.parameters()]) - len(want) + 2  # nothing else is learned


@pytest.mark.parametrize(("weight", "act"), SAVED, ids=name_of)
def test_a_layer_saved_and_loaded_is_the_same(weight, act, tmp_path):
    layer, other = make_layer(weight, act), make_layer(weight, act, seed=9)
    first, second = rows(4, TOKENS, K), 5 * rows(5, TOKENS, K)
    layer(first)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    y = layer(second)
    assert torch.equal(other(second), y)
    assert not torch.equal(make_layer(weight, act, seed=9)(second), y)
    for name, tensor in load_file(tmp_path / "layer.safetensors").items():
        assert torch.equal(layer.state_dict()[name], tensor), name
        assert torch.equal(other.state_dict()[name], tensor), name


# pQuant's feed-forward layers


class FeedForward(nn.Module):
    def __init__(self, width: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        for name, (k, out) in zip(names, ((48, width), (48, width), (width, 48)), strict=True):
            setattr(self, name, nn.Linear(k, out, bias=False, dtype=torch.float64))


@pytest.mark.parametrize("suffix", ["", "_proj"])
@pytest.mark.parametrize(("width", "narrow"), [(64, 16), (320, 16), (512, 32), (800, 48)])
@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_a_feed_forward_layer_has_a_narrow_branch_of_eight_bits(part, width, narrow, suffix):
    torch.manual_seed(0)
    names = tuple(name + suffix for name in ("gate", "up", "down"))
    model = prepare(FeedForward(width, names), QuantSpec(method="pquant", weight_bits=1, act_bits=8))
    layer = getattr(model, part + suffix)
    wide_scale, narrow_scale = layer.weight_quantizer.output_scale, layer.narrow_quantizer.output_scale
    assert (wide_scale.item(), narrow_scale.item()) == (1.0, 1.0)
    with torch.no_grad():
        layer.weight.add_(0.1)
        wide_scale.fill_(0.7)
        narrow_scale.fill_(1.9)
    out, k = layer.weight.shape
    x, dy = rows(1, TOKENS, k).requires_grad_(), rows(2, TOKENS, out)
    y = layer(x)
    y.backward(dy)

    w, axis = layer.weight.detach(), 1 if part == "down" else 0  # down is cut by columns
    wide, eight = w.split([width - narrow, narrow], axis)
    branches = [answer(Case("pquant", "weight", bits), each, each).values for bits, each in ((1, wide), (8, eight))]
    w_q = torch.cat([0.7 * branches[0], 1.9 * branches[1]], axis)
    gain, eps = layer.input_norm.weight.detach(), layer.input_norm.eps
    inner = normed(x.detach(), gain, eps, torch.zeros_like(x))[0]
    parts = inner.split([width - narrow, narrow], 1) if axis == 1 else [inner]  # each branch has inputs of its own
    x_q = torch.cat([answer(Case("pquant", "activation", 8), part, part).values for part in parts], 1)
    close(y.detach(), x_q @ w_q.T)
    close(x.grad, normed(x.detach(), gain, eps, dy @ w_q)[1])
    dw = (dy.T @ x_q).split([width - narrow, narrow], axis)
    close(layer.weight.grad, torch.cat([0.7 * dw[0], 1.9 * dw[1]], axis))
    close(wide_scale.grad, (dw[0] * branches[0]).sum())
    close(narrow_scale.grad, (dw[1] * branches[1]).sum())


def test_elsewhere_a_linear_layer_has_one_bit_only():
    model = nn.ModuleDict({name: nn.Linear(48, 64, dtype=torch.float64) for name in ("q", "output", "upper")})
    prepare(model, QuantSpec(method="pquant", weight_bits=1, act_bits=8))
    for layer in model.values():
        assert len([*layer.parameters()]) == 3  # weight, bias, the norm's gain
        x, b = rows(0, TOKENS, 48), layer.bias.detach()
        norm = Norm(layer.input_norm.weight.detach(), layer.input_norm.eps)
        cases = Case("pquant", "weight", 1), Case("pquant", "activation", 8)
        want = layer_answer(*cases, x, layer.weight.detach(), b, torch.zeros(TOKENS, 64).double(), norm)
        close(layer(x).detach(), want[0]["y"])
