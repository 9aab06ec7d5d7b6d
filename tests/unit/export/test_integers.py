from __future__ import annotations

from pathlib import Path

import pytest
import torch

import questlm
from helpers.packed_models import trained
from questlm import ops
from questlm.artifact.dense import dense_state_dict
from questlm.artifact.read import load_artifact
from questlm.config import QuantSpec
from questlm.export.integers import integer_rows

DOWN = "layers.0.mlp.down"


@pytest.mark.parametrize(
    ("spec", "ends"),
    [
        ({"weight_bits": 1}, (-1, 1)),
        ({"weight_bits": 4, "steps": "fp8"}, (-15, 15)),
        ({"weight_bits": 8}, (-255, 255)),
        ({"weight_bits": "ternary"}, (-1, 1)),
        ({"method": "lsq", "weight_bits": 4}, (-8, 7)),
        ({"format": "fp4"}, (-12, 12)),
        ({"format": "int-2:4"}, (-15, 15)),
        ({"format": "lloydmax", "weight_bits": 3}, None),
        ({"format": "bf16-2:4"}, None),
        ({"method": "adabin", "weight_bits": 1}, None),
        ({"weight_bits": 16, "act_bits": 4}, None),
    ],
    ids=str,
)
def test_integers_and_steps_are_the_matrix(spec: dict, ends: tuple[int, int] | None, tmp_path: Path) -> None:
    questlm.pack(trained(QuantSpec(**{"act_bits": 16, "embeddings": "int8"} | spec)), tmp_path / "packed")
    artifact = load_artifact(tmp_path / "packed")
    dense, embedding = dense_state_dict(artifact), integer_rows(artifact, "embed")
    assert embedding is not None
    assert torch.equal(embedding.values * embedding.step, dense["embed.weight"])
    rows = integer_rows(artifact, DOWN)
    if ends is None:
        assert rows is None
        return
    assert rows is not None
    assert (rows.low, rows.high) == ends
    assert ends[0] <= int(rows.values.min()) < 0 < int(rows.values.max()) <= ends[1]
    plain = ops.hadamard(rows.values * rows.step, artifact.config.weight_format(DOWN).block_size)
    assert torch.equal(plain, dense[f"{DOWN}.weight"])
