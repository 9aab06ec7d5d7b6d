from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from questlm import Llama, QuantSpec, prepare
from questlm.artifact.format import FORMAT, VERSION
from questlm.artifact.read import load_artifact, open_artifact, require_known_ids
from questlm.config import ModelConfig
from questlm.errors import ArtifactError, ConfigError
from questlm.export.pack import pack
from questlm.manifest import write_manifest
from questlm.tokenizer_files import parse_tokenizer


def test_a_tokenizer_neither_cuts_nor_pads(tokenizer_json: str) -> None:
    cutting = Tokenizer.from_str(tokenizer_json)
    cutting.enable_truncation(4)
    cutting.enable_padding(length=12)
    whole = parse_tokenizer(cutting.to_str(), "it", ArtifactError)
    assert len(whole.encode("abcdefgh").ids) == 8
    require_known_ids(whole, 257)
    with pytest.raises(ArtifactError, match="has the id 256"):
        require_known_ids(whole, 256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=50)
    pack(prepare(Llama(config).initialize(0), QuantSpec()), tmp_path / "a")
    return tmp_path / "a"


def flip_last_byte(folder: Path) -> None:
    """Damage a value that is allowed, so that the hash alone can tell."""
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-4] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def test_a_wrong_hash_ends_the_block_whatever_happened_in_it(folder: Path) -> None:
    flip_last_byte(folder)
    done = []
    with pytest.raises(ArtifactError, match="does not match its SHA-256"), open_artifact(folder) as artifact:
        done.append(dict(artifact.tensors))
    with pytest.raises(ArtifactError, match="does not match its SHA-256"), open_artifact(folder):
        raise RuntimeError("which the damage led to")
    with pytest.raises(ArtifactError, match="does not match its SHA-256"):
        load_artifact(folder)
    assert len(done) == 1  # it was read while the hash was computed


def test_an_error_of_the_block_is_its_own_where_the_files_are_whole(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no memory"), open_artifact(folder):
        raise ConfigError("no memory")
    with open_artifact(folder) as artifact:
        expected = dict(artifact.tensors)
    loaded = load_artifact(folder).tensors
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in loaded)


def test_a_refused_tokenizer_leaves_no_file_open(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder, FORMAT, VERSION)
    with pytest.raises(ArtifactError, match="tokenizer"):
        load_artifact(folder)
