"""A weight with steps in fewer bits: the same codes and gradients, and steps that the stored numbers hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import questlm
from questlm import ops
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.ops.reference.storage import load_steps, store_steps
from questlm.quant.methods import layer_quantizers

W = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize("steps", ["fp16", "fp8"])
@pytest.mark.parametrize("method", ["quest", "lsq", "seq", "bitnet"])
def test_only_the_steps_differ(method: str, steps: str) -> None:
    bits = {"bitnet": "ternary", "seq": 2}.get(method, 3)
    plain, rounded = (
        layer_quantizers(QuantSpec(method=method, weight_bits=bits, act_bits=16, steps=kept), 24, 64).weight
        for kept in ("fp32", steps)
    )
    plain(W)  # those that learn begin from a tensor
    rounded(W)
    own, kept = plain.operand(W), rounded.operand(W)
    assert torch.equal(own.data, kept.data)
    assert not torch.equal(own.step, kept.step)
    assert torch.equal(load_steps(store_steps(kept.step, steps), steps), kept.step)
    torch.testing.assert_close(kept.step, own.step, rtol=1 / 16, atol=0)
    assert torch.equal(rounded(W), ops.operand_values(kept))
    gradient = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(gradient_of(plain, gradient), gradient_of(rounded, gradient))


def gradient_of(quantizer: torch.nn.Module, gradient: Tensor) -> Tensor | None:
    x = W.clone().requires_grad_()
    quantizer(x).backward(gradient)
    return x.grad


def test_a_method_with_scales_of_its_own_is_refused() -> None:
    spec = QuantSpec(method="pquant", weight_bits=1, act_bits=8, steps="fp16")
    with pytest.raises(ConfigError, match="steps are fp32 only"):
        questlm.prepare(torch.nn.Sequential(torch.nn.Linear(64, 64)), spec)
