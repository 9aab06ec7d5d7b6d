"""Gradients of inputs from float8 products: an option, whose only effect is their rounding."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.config import ModelConfig, QuantSpec
from questlm.models import Llama
from questlm.ops import Operand
from questlm.quant import held_weights, prepare

SHAPE = ModelConfig(layers=2, hidden=32, heads=2, vocab_size=64)


@pytest.mark.parametrize(("rows", "out", "k"), [(5, 16, 32), (33, 48, 80)])
def test_the_product_is_within_float8_rounding(rows: int, out: int, k: int) -> None:
    dy, w = torch.randn(rows, out) * torch.logspace(-6, 6, rows).unsqueeze(1), torch.randn(out, k)
    exact = dy.double() @ w.double()
    got = ops.operand_gradient(dy, Operand(w), torch.float32, float8=True)
    error = (got - exact).norm(dim=1) / exact.norm(dim=1)  # of each row, whatever its size
    assert 1e-3 < float(error.max()) < 0.06  # three mantissa bits: at most 1/16 of each factor, less on average


def test_zeros_stay_zeros() -> None:
    got = ops.operand_gradient(torch.zeros(3, 16), Operand(torch.randn(16, 32)), torch.float32, float8=True)
    assert torch.equal(got, torch.zeros(3, 32))


@pytest.mark.parametrize("held", [True, False])
def test_only_the_gradients_of_inputs_change(held: bool) -> None:
    ids = torch.randint(64, (2, 9))
    gradients, losses = [], []
    for backward in ("bf16", "float8"):
        model = prepare(Llama(SHAPE).initialize(0), QuantSpec(backward=backward))
        if held:
            with held_weights(model):
                loss, _ = model(ids[:, :-1], targets=ids[:, 1:])
                loss.backward()
        else:
            loss, _ = model(ids[:, :-1], targets=ids[:, 1:])
            loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert losses[0] == losses[1]
    plain, low = gradients
    assert torch.equal(plain["layers.1.mlp.down.weight"], low["layers.1.mlp.down.weight"])  # nothing comes before it
    first = "layers.0.attention.q.weight"
    difference = (plain[first] - low[first]).norm() / plain[first].norm()
    assert 1e-4 < float(difference) < 0.2
