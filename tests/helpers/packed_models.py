"""Small models of every method and format, to be packed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.models import Llama
from questlm.quant import METHODS
from questlm.quant.methods import FORMAT_BITS

SHAPE = ModelConfig(layers=2, hidden=48, heads=2, kv_heads=1, mlp_hidden=64, vocab_size=61)
IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
OVERRIDES = {"lm_head": 8, "mlp.down": {"act_bits": 8}, "layers.1.attention.*": {"method": "lsq"}}


SHIPPED = [
    QuantSpec(weight_bits=3, act_bits=16, steps="fp16", embeddings="int4"),
    QuantSpec(weight_bits=2, act_bits=4, steps="fp8", embeddings="int2"),
    QuantSpec(method="lsq", steps="fp16", embeddings="int7"),
    QuantSpec(method="adabin", weight_bits=1, act_bits=1, steps="fp16", embeddings="int8"),
    QuantSpec(format="int-2:4", act_format="int", steps="fp8", embeddings="int3"),
]
"""Steps and embeddings in fewer bits than usual."""


def specs() -> list[QuantSpec]:
    """Every method at its widest and narrowest, both factors and each alone, and every format."""
    found: list[dict[str, Any]] = []
    for name, method in METHODS.items():
        ends = {method.weight.bits[0], method.weight.bits[-1], *[b for b in (1, 8) if b in method.weight.bits]}
        for bits in sorted(ends, key=str):
            act = bits if bits in method.act.bits else method.act.bits[0]
            found += [{"method": name, "weight_bits": bits, "act_bits": a} for a in (act, 16)]
        found.append({"method": name, "weight_bits": 16, "act_bits": method.act.bits[0]})
        for form in [form for form in method.formats if form not in ("int", "ternary")]:
            found += [
                {"method": name, "format": form, "weight_bits": bits, "act_bits": 4, "act_format": "int"}
                for bits in FORMAT_BITS[form]
            ]
    found.append({"format": "lloydmax", "weight_bits": 3, "act_bits": 2})
    found.append({"overrides": OVERRIDES})
    return [*(QuantSpec(**settings, embeddings="bf16") for settings in found), *SHIPPED]


def trained(spec: QuantSpec, shape: ModelConfig = SHAPE) -> Llama:
    """A model prepared by `spec`, after one step."""
    model = questlm.prepare(Llama(shape).initialize(0), spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten()).backward()
    optimizer.step()
    return model.eval()


def same_logits(found: Tensor, expected: Tensor, spec: QuantSpec) -> bool:
    """Whether a packed model's logits are the trained model's: bit for bit where every sum is of integers.

    Native kernels multiply inputs that are not rounded, and those of a head of integer rows, as 24-bit fixed-point
    numbers, each off by at most half a unit of its row's largest, so that sums differ as those of float32 do.
    """
    if spec.act_bits != 16 and spec.embeddings in ("bf16", "float"):
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())
