"""The bytes of an artifact are known before it is packed: a folder to the byte, a single file nearly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import questlm
from helpers.packed_models import SHAPE, SHIPPED, trained
from questlm.config import ModelConfig, QuantSpec, load_config
from questlm.export.pack import pack
from questlm.models import Llama
from questlm.scaling.artifact_size import artifact_bytes, artifact_overhead, folder_bytes
from questlm.scaling.size import packed_bytes

TRAINING = {"seq_len": 12, "final": {"loss": 1.5}}
SPECS = [
    QuantSpec(),
    QuantSpec(method="pquant", weight_bits=1, act_bits=8),
    QuantSpec(overrides={"lm_head": 8, "mlp.down": {"act_bits": 8}}),
    *SHIPPED,
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.label}-{spec.steps}-{spec.embeddings}")
def test_a_folder_is_counted_to_the_byte(spec: QuantSpec, tmp_path: Path, tokenizer_json: str) -> None:
    shape = SHAPE.model_copy(update={"vocab_size": 300})
    report = pack(trained(spec, shape), tmp_path / "a", tokenizer=tokenizer_json, training=TRAINING)
    assert folder_bytes(shape, spec, len(tokenizer_json.encode()), TRAINING) == report.bytes_by_part


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(weight_bits=3, act_bits=16, steps="fp16", embeddings="int5"),
        QuantSpec(weight_bits=2, act_bits=2),
        QuantSpec(weight_bits="ternary", act_bits=16, steps="fp8", embeddings="int8"),
        QuantSpec(weight_bits=1, act_bits=1),
    ],
    ids=lambda spec: spec.label,
)
def test_a_single_file_of_gaussian_weights_is_estimated_within_a_hundredth(spec: QuantSpec, tmp_path: Path) -> None:
    shape = ModelConfig(layers=1, hidden=256, heads=4, vocab_size=512, tied_head=True)
    model = questlm.prepare(Llama(shape).initialize(0), spec)
    model(torch.zeros(1, 4, dtype=torch.int64))
    report = pack(model.eval(), tmp_path / "model.quest", single_file=True)
    assert artifact_bytes(shape, spec, coded=True, tokenizer=0) == pytest.approx(report.bytes, rel=0.01)


def test_the_preset_for_16_megabytes_leaves_room_for_code() -> None:
    config = load_config("golf-16mb")
    shape = config.model.model_copy(update={"vocab_size": config.data.vocab_size})
    assert 15_000_000 < artifact_bytes(shape, config.quant, coded=True) < 15_750_000


@pytest.mark.parametrize("layers", [1, 7, 20, 96])
def test_what_lies_beside_the_tensors_is_nearly_known_from_the_depth(layers: int) -> None:
    shape = ModelConfig(layers=layers, hidden=128, heads=2, vocab_size=1024)
    exact = artifact_bytes(shape, QuantSpec(), tokenizer=5000) - packed_bytes(shape, QuantSpec())
    assert artifact_overhead(layers, QuantSpec(), coded=False, tokenizer=5000) == pytest.approx(exact, rel=0.06)
