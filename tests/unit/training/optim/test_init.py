"""Optimizers by name: Muon against torch's own and against its formula, groups, state, processes."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from questlm import QuantSpec, prepare
from questlm.config import ModelConfig, TrainConfig
from questlm.models import Llama
from questlm.training.optim import OPTIMIZERS, Muon, make_optimizer
from questlm.training.optim.muon import orthogonalize


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


SHAPES = ((48, 32), (32, 48), (32, 32), (48, 32), (17, 5))


def test_muon_moves_matrices_as_torchs_muon_does() -> None:
    ours, theirs = matrices(*SHAPES), matrices(*SHAPES)
    own = Muon([{"params": ours, "weight_decay": 0.1, "lr_ratio": 1.0}], lr=0.02, precision=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        for optimizer, parameters in ((own, ours), (reference, theirs)):
            gradients(parameters, seed)
            optimizer.step()
    start = matrices(*SHAPES)
    for mine, other, first in zip(ours, theirs, start, strict=True):
        # Products of a batch and of one matrix are summed in different orders, in bfloat16.
        assert (mine - other).norm() / (other - first).norm() < 2e-2


def test_muon_follows_its_formula_in_float64() -> None:
    momentum, lr, decay = 0.9, 0.01, 0.1
    w = nn.Parameter(matrices((12, 20))[0].detach().double())
    expected, buffer = w.detach().clone(), torch.zeros_like(w)
    optimizer = Muon([{"params": [w], "weight_decay": decay, "lr_ratio": 1.0}], lr, momentum, torch.float64)
    for seed in range(3):
        gradients([w], seed)
        assert w.grad is not None
        buffer = momentum * buffer + (1 - momentum) * w.grad
        u = (1 - momentum) * w.grad + momentum * buffer
        left, values, right = torch.linalg.svd(u / u.norm(), full_matrices=False)
        for _ in range(5):  # the iteration acts on each singular value by itself
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        update = left @ torch.diag(values) @ right
        expected = (1 - lr * decay) * expected - lr * 0.2 * 20**0.5 * update
        optimizer.step()
    torch.testing.assert_close(w.detach(), expected, rtol=1e-9, atol=1e-9)


def test_rows_of_a_tall_update_can_be_made_alike() -> None:
    shapes = ((48, 32), (32, 48), (32, 32), (48, 32))
    plain, equal = matrices(*shapes), matrices(*shapes)
    for parameters, rows in ((plain, False), (equal, True)):
        gradients(parameters, 0)
        Muon([{"params": parameters, "weight_decay": 0.0, "lr_ratio": 1.0}], 0.1, equal_rows=rows).step()
    for start, one, other in zip(matrices(*shapes), plain, equal, strict=True):
        moved, alike = (one - start).detach(), (other - start).detach()
        if start.shape[0] > start.shape[1]:
            norms = moved.norm(dim=1, keepdim=True)
            expected = moved / norms * 0.1 * 0.2 * 48**0.5 * (32 / 48) ** 0.5
            assert norms.std() > 0.01 * norms.mean()
        else:
            expected = moved
        torch.testing.assert_close(alike, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_an_orthogonalized_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(x))
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.6


def test_a_zero_gradient_moves_nothing_but_by_weight_decay() -> None:
    (w,) = matrices((8, 8))
    before = w.detach().clone()
    w.grad = torch.zeros_like(w)
    Muon([{"params": [w], "weight_decay": 0.5, "lr_ratio": 1.0}], lr=0.1).step()
    torch.testing.assert_close(w.detach(), 0.95 * before)


def small_model() -> Llama:
    torch.manual_seed(0)
    model = Llama(ModelConfig(layers=2, hidden=32, heads=2, mlp_hidden=64, vocab_size=40))
    model.initialize(0)
    return prepare(model, QuantSpec(method="lsq", weight_bits=4, act_bits=4))


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = small_model()
    train = TrainConfig(optimizer="muon", lr=1e-3, muon_lr=4e-3, quantizer_lr=1e-4, weight_decay=0.3)
    optimizer = make_optimizer(model, train)
    optimizer.set_learning_rate(5e-4)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: group for group in optimizer.groups for p in group["params"]}
    assert found.keys() == set(names.values())
    matrix, norm, head = found["layers.0.attention.q.weight"], found["norm.weight"], found["lm_head.weight"]
    assert "momentum" in matrix
    assert "betas" in norm
    assert head is norm
    assert matrix["lr"] == pytest.approx(2e-3)
    assert norm["lr"] == pytest.approx(5e-4)
    assert matrix["weight_decay"] == 0.3
    assert norm["weight_decay"] == 0.0
    learned = next(group for name, group in found.items() if "quantizer" in name)
    assert learned["lr"] == pytest.approx(5e-5)


def test_embedding_and_head_may_have_rates_of_their_own() -> None:
    model = small_model()
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon", lr=1e-3, embedding_lr=8e-3, head_lr=2e-3))
    optimizer.set_learning_rate(5e-4)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    assert rates["embed.weight"] == pytest.approx(4e-3)
    assert rates["lm_head.weight"] == pytest.approx(1e-3)
    assert rates["norm.weight"] == rates["layers.0.mlp.up.weight"] == pytest.approx(5e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_made_state_is_what_a_first_step_finds(name: str) -> None:
    model, again = small_model(), small_model()
    ids = torch.randint(40, (2, 8), generator=torch.Generator().manual_seed(0))
    optimizers = [make_optimizer(each, TrainConfig(optimizer=name)) for each in (model, again)]
    for each in (model, again):
        each(ids)
    optimizers[1].make_state()
    for each, optimizer in zip((model, again), optimizers, strict=True):
        each(ids, targets=ids)[0].backward()
        optimizer.step()
    first, second = (optimizer.tensors(each) for each, optimizer in zip((model, again), optimizers, strict=True))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, second[key], rtol=0, atol=0)
    for (_, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_quantisers_learn_is_a_group_of_its_own():
    model = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(32, 32, bias=False), nn.RMSNorm(32))})
    prepare(model, QuantSpec(method="lsq"))
    optimizer = make_optimizer(model, TrainConfig(lr=1e-3, quantizer_lr=1e-4, quantizer_weight_decay=0.5))
    optimizer.set_learning_rate(5e-4)
    groups = [(tuple(g["params"][0].shape), g["lr"], g["weight_decay"]) for g in optimizer.groups]
    assert groups == [((32, 32), 5e-4, 0.1), ((32,), 5e-4, 0.0), ((1, 1), pytest.approx(5e-5), 0.5)]


def test_the_settings_name_every_optimizer() -> None:
    assert set(get_args(TrainConfig.model_fields["optimizer"].annotation)) == OPTIMIZERS.keys()
