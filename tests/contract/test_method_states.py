"""Learned state at its edges: first tensors that say nothing, rows of zeros, and what a second model takes over."""

from __future__ import annotations

import pytest
import torch

from questlm.quant import METHODS, make_quantizer

STATEFUL = [
    (name, role)
    for name, method in METHODS.items()
    for role in ("weight", "activation")
    if method.recipe(role).learned and name != "pquant"
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
