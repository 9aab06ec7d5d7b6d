"""What the planner counts is what `quest pack` writes."""

from __future__ import annotations

import pytest
import torch

from questlm import Llama, QuantSpec, prepare
from questlm.artifact.format import expected_tensors
from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.export.pack import _describe
from questlm.scaling.size import packed_bytes

SPECS = [
    *[QuantSpec(weight_bits=b, act_bits=b, embeddings="bf16") for b in (1, 2, 3, 4, 5, 6, 7, 8, "ternary", 16)],
    *[QuantSpec(weight_bits=b, act_bits=b, embeddings="int8") for b in (4, 16)],
    *[QuantSpec(format=name) for name in ("fp4", "lloydmax", "int-2:4", "bf16-2:4")],
    QuantSpec(weight_bits=4, act_bits=16),
    QuantSpec(weight_bits=16, act_bits=4),
    *[QuantSpec(method=name) for name in ("quarot", "ste", "lsq", "lsq-row", "lsq+", "pact")],
    *[QuantSpec(method=name, weight_bits="ternary", act_bits=8) for name in ("bitnet", "extra-rmsnorm")],
    QuantSpec(method="seq", weight_bits=2, act_bits=2),
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.label}-{spec.embeddings}")
def test_the_count_is_that_of_the_artifact(spec: QuantSpec, tied: bool) -> None:
    config = ModelConfig(
        layers=2, hidden=80, heads=4, kv_heads=2, head_dim=24, mlp_hidden=112, vocab_size=96, tied_head=tied
    )
    model = prepare(Llama(config).initialize(0), spec)
    model(torch.zeros(1, 4, dtype=torch.int64))  # by which quantisers that learn take their first steps
    written = sum(tensor.bytes for tensor in expected_tensors(_describe(model, {}, None, None)).values())
    assert packed_bytes(config, spec) == written


@pytest.mark.parametrize("spec", [QuantSpec(method="adabin", weight_bits=1), QuantSpec(overrides={"mlp.down": 8})])
def test_what_is_not_known_before_packing_is_refused(spec: QuantSpec) -> None:
    with pytest.raises(ConfigError, match="not known before it is packed"):
        packed_bytes(ModelConfig(vocab_size=96), spec)
    with pytest.raises(ConfigError, match="vocab_size"):
        packed_bytes(ModelConfig(), QuantSpec())
