"""The methods and recipes that the study of better recipes tries, against plain formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from helpers.oracle import SCALE, quantize_rows, rotation
from questlm import QuantSpec, prepare
from questlm.plugins import load_plugin
from questlm.quant import fake_quantize, quantized_layers
from questlm.quant.layers.mode import Mode

STUDY = Path(__file__).parents[2] / "studies" / "better-recipe"


@pytest.fixture
def candidates(forget_plugins: Callable[[], None]) -> Iterator[ModuleType]:
    forget_plugins()
    load_plugin(STUDY / "candidates.py")
    yield sys.modules["questlm_plugin_candidates"]


def rows() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 256, dtype=torch.float64)


def passed(x: Tensor, method: str, bits: int, role: str = "activation") -> Tensor:
    """The gradient that reaches each entry of the rotated rows, of ones."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fake_quantize(x, method, bits, role).sum(), x)
    return gradient @ rotation(x.shape[-1])


@pytest.mark.usefixtures("candidates")
@pytest.mark.parametrize(
    ("method", "role", "trust"),
    [
        ("quest-trust-w2.0-aown", "weight", 2.0),
        ("quest-trust-w2.0-aown", "activation", 1.3),
        ("quest-trust-wown-a1.6", "activation", 1.6),
        ("quest-trust-winf-aown", "weight", float("inf")),
    ],
)
def test_each_factor_has_its_own_trust_factor(method, role, trust):
    x = rows()
    near = ((x @ rotation(256)).abs() <= trust * SCALE[1] * x.square().mean(-1, keepdim=True).sqrt()).double()
    torch.testing.assert_close(passed(x, method, 1, role), near)


@pytest.mark.usefixtures("candidates")
@pytest.mark.parametrize(("role", "scale"), [("weight", 1.0), ("activation", 1.15)])
def test_a_wider_grid_has_levels_further_apart_and_the_same_mask(role, scale):
    x = rows()
    rms, x_h = x.square().mean(-1, keepdim=True).sqrt(), x @ rotation(256)
    step = scale * 2 * SCALE[2] / 3 * rms
    wanted = step * (torch.round(x_h / step + 0.5).clamp(-1, 2) - 0.5)
    torch.testing.assert_close(fake_quantize(x, "quest-scale-w1.0-a1.15", 2, role), wanted)
    assert torch.equal(passed(x, "quest-scale-w1.0-a1.15", 2, role), passed(x, "quest", 2, role))


@pytest.mark.usefixtures("candidates")
def test_a_tenth_of_the_masked_gradient_leaks():
    x = rows()
    _, mask = quantize_rows(x, 1)
    torch.testing.assert_close(passed(x, "quest-leak", 1), mask + 0.1 * (1 - mask))
    torch.testing.assert_close(fake_quantize(x, "quest-leak", 1), fake_quantize(x, "quest", 1))


def test_a_soft_sign_has_the_gradient_of_a_tanh_which_sharpens(candidates):
    x = rows()
    rotated = x @ rotation(256)
    u = rotated / rotated.square().mean(-1, keepdim=True).sqrt()
    layer = prepare(nn.Sequential(nn.Linear(256, 1, bias=False)), QuantSpec(method="quest-soft", act_bits=1)).double()
    (quantizer,) = (each.act_quantizer for each in quantized_layers(layer).values())
    for done, t in ((0.0, 0.1), (0.5, 1.0), (1.0, 10.0)):
        candidates.Sharpen().before_step(SimpleNamespace(model=layer, done=done))
        given = x.clone().requires_grad_()
        values = quantizer(given)
        torch.testing.assert_close(values, quantize_rows(x, 1)[0])
        (gradient,) = torch.autograd.grad(values.sum(), given)
        wanted = max(1 / t, 1) * t / torch.cosh(t * u).square()
        torch.testing.assert_close(gradient @ rotation(256), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("candidates")
def test_blocks_have_steps_of_their_own():
    x = rows() * torch.logspace(-1, 1, 256, dtype=torch.float64)
    x_q, mask = quantize_rows(x.reshape(-1, 128), 2)
    torch.testing.assert_close(fake_quantize(x, "quest-blocks", 2, "activation"), x_q.reshape(x.shape))
    torch.testing.assert_close(passed(x, "quest-blocks", 2), mask.reshape(x.shape))


def test_signs_come_before_the_transform_and_differ_by_seed(candidates):
    x, drawn = rows(), [candidates.signs(256, seed, rows()) for seed in (1, 2)]
    torch.testing.assert_close(fake_quantize(x, "quest-signs1", 1), fake_quantize(x * drawn[0], "quest", 1))
    assert all(set(each.tolist()) == {-1.0, 1.0} and abs(each.mean()) < 0.25 for each in drawn)
    assert abs((drawn[0] * drawn[1]).mean()) < 0.25


@pytest.mark.usefixtures("candidates")
def test_a_product_of_signed_factors_is_that_of_rows_and_columns_with_signs():
    layer = nn.Linear(256, 8, bias=False)
    signed = prepare(nn.Sequential(layer), QuantSpec(method="quest-signs1", weight_bits=8, act_bits=8))
    x = torch.randn(3, 256)
    assert (signed(x) - x @ layer.weight.T).norm() < 0.03 * (x @ layer.weight.T).norm()


class Counter:
    """A function that counts its calls."""

    calls = 0

    def __call__(self) -> None:
        self.calls += 1


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return prepare(nn.Sequential(nn.Linear(64, 8, bias=False)), QuantSpec(weight_bits=1, act_bits=1))


def test_dense_first_quantises_from_its_share_on(candidates):
    recipe, moment = candidates.DenseFirst(0.5), SimpleNamespace(model=model(), done=0.4, record_again=Counter())
    (layer,) = quantized_layers(moment.model).values()
    recipe.before_step(moment)
    assert layer.mode is Mode.DENSE
    recipe.before_step(moment)
    assert moment.record_again.calls == 1
    moment.done = 0.5
    recipe.before_step(moment)
    assert layer.mode is Mode.QUANTIZED
    assert moment.record_again.calls == 2


@pytest.mark.parametrize("weights", [True, False])
def test_more_bits_come_first(candidates, weights):
    recipe, moment = (
        candidates.MoreBitsFirst(0.5, bits=4, weights=weights),
        SimpleNamespace(model=model(), done=0.4, record_again=Counter()),
    )
    (layer,), x = quantized_layers(moment.model).values(), torch.randn(3, 64)
    own = layer(x).detach()
    recipe.before_step(moment)
    torch.manual_seed(0)
    wide = nn.Linear(64, 8, bias=False)
    more = prepare(nn.Sequential(wide), QuantSpec(weight_bits=4 if weights else 1, act_bits=4))
    assert torch.equal(layer(x), more(x))
    recipe.before_step(moment)
    assert moment.record_again.calls == 1
    moment.done = 0.5
    recipe.before_step(moment)
    assert torch.equal(layer(x), own)
    assert moment.record_again.calls == 2


def test_bits_may_fall_twice(candidates):
    recipe = candidates.MoreBitsFirst(0.3, 4, second_share=0.6, second_bits=2)
    moment = SimpleNamespace(model=model(), done=0.0, record_again=Counter())
    (layer,) = quantized_layers(moment.model).values()
    levels = []
    for moment.done in (0.0, 0.3, 0.5, 0.6, 0.9):
        recipe.before_step(moment)
        levels.append((layer.weight_quantizer.grid.levels, layer.act_quantizer.grid.levels))
    assert levels == [(16, 16), (4, 4), (4, 4), (2, 2), (2, 2)]
    assert moment.record_again.calls == 3


def test_the_penalty_is_the_mean_square_of_the_log_sum(candidates):
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    wanted = 0.1 * logits.exp().sum(-1).log().square().mean()
    torch.testing.assert_close(
        candidates.LogitPenalty(0.1).loss(None, None, logits).double(), wanted, rtol=1e-5, atol=0
    )


def test_the_last_weights_are_the_mean_of_the_last_share(candidates):
    recipe, moment = candidates.AverageWeights(0.5), SimpleNamespace(model=model(), done=0.0)
    (weight,) = moment.model.parameters()
    seen = []
    for done in (0.25, 0.5, 0.75):
        with torch.no_grad():
            weight.normal_()
        moment.done = done
        recipe.before_step(moment)
        recipe.after_step(moment)
        seen.append(weight.detach().clone())
    moment.done = 1.0
    recipe.before_step(moment)
    torch.testing.assert_close(weight.detach(), torch.stack(seen[1:]).mean(0))


def test_winq_pulls_every_so_many_steps(candidates):
    recipe, moment = candidates.WinQ(every=2, share=0.25), SimpleNamespace(model=model())
    (layer,) = quantized_layers(moment.model).values()
    before, rounded = layer.weight.detach().clone(), layer.rounded_weight()
    recipe.after_step(moment)
    assert torch.equal(layer.weight, before)
    recipe.after_step(moment)
    torch.testing.assert_close(layer.weight.detach(), before + 0.25 * (rounded - before))


def test_bounded_weights_stay_within_the_bound(candidates):
    moment = SimpleNamespace(model=model())
    (layer,) = quantized_layers(moment.model).values()
    before = layer.weight.detach().double() @ rotation(64)
    candidates.BoundedWeights(1.5).after_step(moment)
    most = 1.5 * before.square().mean(-1, keepdim=True).sqrt()
    after = layer.weight.detach().double() @ rotation(64)
    torch.testing.assert_close(after, before.clamp(-most, most), rtol=1e-5, atol=1e-6)
