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
