"""Tensors are read from the file one by one, and each is checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from questlm import Llama, QuantSpec, prepare
from questlm.artifact.read import open_artifact
from questlm.artifact.tensors import StoredTensors, meta_tensors
from questlm.config import ModelConfig
from questlm.errors import ArtifactError
from questlm.export.pack import pack

CONFIG = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=50)
CODES, NORM = "layers.0.mlp.up.codes", "norm.weight"


@pytest.fixture(
    params=[QuantSpec(embeddings="int8"), QuantSpec(format="ternary"), QuantSpec(format="int-2:4")], ids=str
)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pack(prepare(Llama(CONFIG).initialize(0), request.param), tmp_path / "a")
    return tmp_path / "a"


def test_each_look_up_reads_the_files_tensor_into_memory_of_its_own(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    with open_artifact(folder) as artifact:
        assert isinstance(artifact.tensors, StoredTensors)
        assert artifact.tensors.keys() == expected.keys()
        assert len(artifact.tensors) == len(expected)
        for name, tensor in artifact.tensors.items():
            assert torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype
            tensor.zero_()
            assert torch.equal(artifact.tensors[name], expected[name])
        with pytest.raises(KeyError):
            artifact.tensors["no such tensor"]
        tensors = artifact.tensors
    with pytest.raises(ValueError, match="closed"):
        tensors[NORM]


def test_a_file_that_ends_early_is_refused_at_the_look_up(folder: Path) -> None:
    with open_artifact(folder) as artifact:
        config = artifact.config
    path = folder / "model.safetensors"
    with StoredTensors([path], config) as tensors:
        path.write_bytes(path.read_bytes()[:-1])
        last = max(tensors, key=lambda name: tensors._places[name][1])
        with pytest.raises(ArtifactError, match="ends within"):
            tensors[last]


def test_tensors_without_values_are_of_the_shapes_that_are_stored(folder: Path) -> None:
    with open_artifact(folder) as artifact:
        stored = meta_tensors((48, 32), artifact.config.weight_format("layers.0.mlp.up"))
        for kind, tensor in stored.items():
            found = artifact.tensors[f"layers.0.mlp.up.{kind}"]
            assert (tensor.dtype, tensor.shape) == (found.dtype, found.shape) and tensor.is_meta
