"""What a loaded model takes in memory, at rest and while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

import questlm
from helpers.allocated import peak_bytes
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError
from questlm.export.pack import pack
from questlm.memory import Memory
from questlm.models import Llama

SHAPE = ModelConfig(layers=2, hidden=512, heads=4, mlp_hidden=1024, vocab_size=1024)
PARAMETERS = SHAPE.parameters
MIB = 2**20
IDS = torch.arange(9)[None]


@pytest.fixture(scope="module", params=[(1, "int8"), (4, "bf16")], ids=str)
def folder(request, tmp_path_factory) -> Path:
    bits, embeddings = request.param
    spec = QuantSpec(weight_bits=bits, act_bits=bits, embeddings=embeddings)
    path = tmp_path_factory.mktemp("packed") / "a"
    pack(questlm.prepare(Llama(SHAPE).initialize(0), spec), path)
    return path


def test_a_packed_model_takes_its_packed_size_and_a_few_mebibytes(folder: Path) -> None:
    model = questlm.load(folder, weights="packed")
    stored = (folder / "model.safetensors").stat().st_size
    assert 0.95 * stored < model.weight_bytes <= 1.03 * stored
    assert peak_bytes(lambda: model.logits(IDS)) < 4 * MIB  # its weights are 22 MiB in float32


@pytest.mark.parametrize("weights", ["auto", "packed"])
def test_loading_takes_the_memory_of_the_model_and_of_one_matrix(
    folder: Path, weights: Literal["auto", "packed"]
) -> None:
    stored, largest = (folder / "model.safetensors").stat().st_size, 2 * SHAPE.vocab_size * SHAPE.hidden
    assert peak_bytes(lambda: questlm.load(folder, weights=weights)) < 1.03 * stored + 1.6 * largest + MIB


@pytest.mark.parametrize("weights", ["auto", "packed"])
def test_native_products_take_packed_weights(folder: Path, weights: Literal["auto", "packed"]) -> None:
    stored = (folder / "model.safetensors").stat().st_size
    model = questlm.load(folder, weights=weights)
    assert model.weight_bytes <= 1.03 * stored
    assert peak_bytes(lambda: model.logits(IDS)) < 4 * MIB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_them_the_fastest_products_take_unpacked_weights(
    folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("questlm.ops.cpu.linear.unavailable", lambda backend: "it was not built")
    model = questlm.load(folder, dtype=dtype)
    matrices = (PARAMETERS - SHAPE.vocab_size * SHAPE.hidden) * dtype.itemsize
    embedding = SHAPE.vocab_size * SHAPE.hidden
    assert matrices + embedding < model.weight_bytes < 1.02 * matrices + 2 * embedding + 2**16


def test_a_tied_head_is_kept_once(tmp_path: Path) -> None:
    shape = SHAPE.model_copy(update={"tied_head": True})
    pack(questlm.prepare(Llama(shape).initialize(0), QuantSpec(embeddings="bf16")), tmp_path / "a")
    model = questlm.load(tmp_path / "a", weights="packed")
    assert model.weight_bytes <= 1.03 * (tmp_path / "a" / "model.safetensors").stat().st_size
    torch.testing.assert_close(model.logits(IDS), questlm.load(tmp_path / "a").logits(IDS), rtol=1e-5, atol=1e-5)


def test_too_little_memory_for_unpacked_weights_names_the_other_way(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("questlm.inference.build.host_memory", lambda: Memory(4 * MIB, 16 * MIB))
    questlm.load(folder)  # packed weights are multiplied as they are
    monkeypatch.setattr("questlm.ops.cpu.linear.unavailable", lambda backend: "it was not built")
    with pytest.raises(ConfigError, match=r"unpacked weights needs about .* are free; load it with weights='packed'"):
        questlm.load(folder)
    questlm.load(folder, weights="packed")


def test_another_way_to_keep_weights_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="weights = 'small'; there are: auto, packed"):
        questlm.load(folder, weights="small")  # type: ignore[arg-type]


def test_the_repr_of_a_packed_model_says_what_it_is(folder: Path) -> None:
    model = questlm.load(folder)
    assert "PackedModel(2 layers of width 512, vocabulary 1,024, codes of " in repr(model)
    assert "MB in memory" in repr(model) and "cpu, torch.float32" in repr(model)
    levels = {2, 16} & {each.weight.grid.levels for _, each in model.artifact.weight_formats() if each.act is not None}
    text = repr(model._model.layers[0].mlp.up)
    assert f"in_features=512, out_features=1024, {levels.pop()}-level weights" in text
    assert "PackedEmbedding(1024, 512, " in repr(model._model.embed)


def test_the_repr_of_a_prepared_model_says_how_it_is_quantised() -> None:
    text = repr(questlm.prepare(Llama(SHAPE).initialize(0), QuantSpec(weight_bits=3, embeddings="int8")))
    for part in ("quest-w3a4, block_size=128", "(weight_quantizer): MaskedQuantizer(8 levels", "stored as int8"):
        assert part in text
