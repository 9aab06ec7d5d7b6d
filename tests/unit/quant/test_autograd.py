"""Gradients of inputs from float8 products: an option, whose only effect is their rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from questlm import ops
from questlm.config import ModelConfig, QuantSpec
from questlm.models import Llama
from questlm.ops import Operand
from questlm.quant import cached_weights, prepare

SHAPE = ModelConfig(layers=2, hidden=32, heads=2, vocab_size=64)


# E4M3 keeps 3 bits after the leading one of a number: neighbours between 2**e and 2**(e + 1) are 2**(e - 3) apart, so
# a number rounded to the nearest is wrong by at most 2**-4 of itself. Below the smallest normal number, 2**-6,
# neighbours are 2**-9 apart, and it is wrong by at most 2**-10. Both are of the number after division by its scale,
# which makes the largest number of a row 448.
ROUNDING, SMALLEST_ROUNDING, LARGEST = 2.0**-4, 2.0**-10, 448.0
# The error is even over -2**(e - 4) to 2**(e - 4), so its root mean square is 2**(e - 3) / sqrt(12). Leading digits m
# from 1 to 2 occur in proportion to 1 / m, so the mean of 1 / m**2 is 3 / (8 ln 2). Two factors are rounded.
TYPICAL = 2.0**-3 / math.sqrt(12) * math.sqrt(3 / (8 * math.log(2))) * math.sqrt(2)  # 0.0375


def _rounding(x: Tensor) -> Tensor:
    """The most by which each entry of x changes when the rows of x are rounded to float8."""
    return ROUNDING * x.abs() + SMALLEST_ROUNDING * x.abs().amax(-1, keepdim=True) / LARGEST


@pytest.mark.parametrize(("rows", "out", "k"), [(5, 16, 32), (33, 48, 80)])
def test_the_product_is_within_float8_rounding(rows: int, out: int, k: int) -> None:
    dy, w = _factors(rows, out, k)
    a, b = dy.double(), w.double().T
    da, db = _rounding(a), _rounding(b)
    in_float32 = 2.0**-24 * (out + 4)  # the sums, and the divisions and products by both scales
    bound = (a.abs() + da) @ (b.abs() + db).T * (1 + in_float32) - a.abs() @ b.abs().T
    assert (_error(dy, w).abs() <= bound).all()


def test_the_product_is_wrong_by_what_three_bits_give() -> None:
    dy, w = _factors(64, 512, 64)
    relative = _error(dy, w).norm(dim=1) / (dy.double() @ w.double()).norm(dim=1)  # of each row, whatever its size
    # Within 5% over a hundred seeds; with 2 bits after the leading one it would be twice that.
    assert float(relative.square().mean().sqrt()) == pytest.approx(TYPICAL, rel=0.1)


def _factors(rows: int, out: int, k: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, out) * torch.logspace(-6, 6, rows).unsqueeze(1), torch.randn(out, k)


def _error(dy: Tensor, w: Tensor) -> Tensor:
    return ops.operand_gradient(dy, Operand(w), torch.float32, float8=True) - dy.double() @ w.double()


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
            with cached_weights(model):
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
