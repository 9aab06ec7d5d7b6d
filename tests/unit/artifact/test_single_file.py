"""A single file holds just what a folder does, in fewer bytes, and any fault of it is one error."""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import questlm
from helpers.allocated import peak_bytes
from helpers.packed_models import IDS, trained
from questlm.artifact.read import load_artifact
from questlm.config import QuantSpec
from questlm.errors import ArtifactError
from questlm.export.pack import pack

SPECS = {
    "quest": QuantSpec(weight_bits=3, act_bits=16, embeddings="int8"),
    "ternary": QuantSpec(method="bitnet", weight_bits="ternary", act_bits=8, embeddings="bf16"),
    "sparse": QuantSpec(format="int-2:4", weight_bits=4, act_bits=4, act_format="int", embeddings="bf16"),
    "sparse bf16": QuantSpec(format="bf16-2:4", act_bits=16, act_format="int", embeddings="bf16"),
    "branches": QuantSpec(method="pquant", weight_bits=1, act_bits=8, embeddings="bf16"),
    "offsets": QuantSpec(method="lsq+", embeddings="float"),
    "float32": QuantSpec(weight_bits=16, act_bits=4, embeddings="bf16"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "whole.quest"
    model = trained(SPECS["quest"], questlm.config.ModelConfig(layers=1, hidden=48, heads=2, vocab_size=400))
    pack(model, path, single_file=True, tokenizer=tokenizer_json, chat_template="{{ messages }}")
    return path.read_bytes()


@pytest.mark.parametrize("name", SPECS)
def test_it_holds_the_tensors_of_a_folder(name: str, tmp_path: Path) -> None:
    model = trained(SPECS[name])
    of_folder = pack(model, tmp_path / "folder")
    report = pack(model, tmp_path / "model.quest", single_file=True)
    folder, file = load_artifact(tmp_path / "folder"), load_artifact(tmp_path / "model.quest")
    assert file.config == folder.config
    assert file.tensors.keys() == folder.tensors.keys()
    for key, tensor in folder.tensors.items():
        assert file.tensors[key].dtype is tensor.dtype
        assert torch.equal(file.tensors[key], tensor)
    assert report.bytes == sum(report.bytes_by_part.values()) == (tmp_path / "model.quest").stat().st_size == file.bytes
    assert report.bytes < of_folder.bytes
    logits = [questlm.load(tmp_path / path).logits(IDS) for path in ("folder", "model.quest")]
    assert torch.equal(*logits)


def test_it_brings_its_tokenizer(whole: bytes, tmp_path: Path, tokenizer_json: str) -> None:
    (tmp_path / "model.quest").write_bytes(whole)
    artifact = load_artifact(tmp_path / "model.quest")
    assert (artifact.tokenizer_json, artifact.chat_template) == (tokenizer_json, "{{ messages }}")
    assert questlm.load(tmp_path / "model.quest").encode("def ")


FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 22}]


def resealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def document(content: bytes, says: int | None = None) -> bytes:
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=FILTERS)
    return struct.pack("<BII", 1, len(packed), len(content) if says is None else says) + packed


DAMAGE = {
    "another file": (lambda file: b"PK" + file[2:], "not the single file"),
    "no bytes": (lambda file: b"", "not the single file"),
    "another layout": (lambda file: file[:7] + b"\x02" + file[8:], "layout 2"),
    "cut": (lambda file: file[:-40], "SHA-256"),
    "a bit": (lambda file: file[:300] + bytes([file[300] ^ 1]) + file[301:], "SHA-256"),
    "longer": (lambda file: file + b"\0", "SHA-256"),
    "no documents": (lambda file: resealed(file[:8]), "ends before its config"),
    "a config of words": (lambda file: resealed(file[:8] + document(b"hello there, is this JSON?")), "tokenizer"),
    "no config": (lambda file: resealed(file[:8] + document(b"[" * 40 + b"]" * 40) + bytes(9)), "config"),
    "a bomb": (lambda file: resealed(file[:8] + document(b" " * 10**6) + bytes(9)), "cannot be"),
    "a bomb that lies": (lambda file: resealed(file[:8] + document(b" " * 10**6, 60) + bytes(9)), "should"),
    "no tensors": (
        lambda file: resealed(file[: 8 + 9 + int.from_bytes(file[9:13], "little")] + bytes(9)),
        "tensors of",
    ),
    "more behind": (lambda file: resealed(file[:-32] + b"\0"), "left over"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_a_sentence(name: str, whole: bytes, tmp_path: Path) -> None:
    change, reason = DAMAGE[name]
    (tmp_path / "model.quest").write_bytes(change(whole))
    with pytest.raises(ArtifactError, match=reason) as caught:
        load_artifact(tmp_path / "model.quest")
    assert len(str(caught.value)) < 600


def test_a_hostile_file_takes_no_more_memory_than_an_honest_one(tmp_path: Path, tokenizer_json: str) -> None:
    path = tmp_path / "model.quest"
    shape = questlm.config.ModelConfig(layers=2, hidden=64, heads=2, vocab_size=400)
    pack(trained(SPECS["quest"], shape), path, single_file=True, tokenizer=tokenizer_json)
    whole = path.read_bytes()
    honest = peak_of_loading(path)
    config_end = 8 + 9 + int.from_bytes(whole[9:13], "little")
    config = lzma.decompress(whole[17:config_end], lzma.FORMAT_RAW, filters=FILTERS)
    hostile = [
        whole[:8] + document(config.replace(b'"layers":2', b'"layers":64')) + whole[config_end:-32],  # cannot be coded
        whole[:8] + document(config.replace(b'"layers":2', b'"layers":3')) + whole[config_end:-32],  # ends too early
        whole[:8] + document(b" " * 100_000 + config) + whole[config_end:-32],
    ]
    for content in hostile:
        path.write_bytes(resealed(content))
        assert peak_of_loading(path) < 1.1 * honest + 200_000


def peak_of_loading(path: Path) -> int:
    """Most bytes that reading a file takes at a time, of Python, NumPy and torch, whether it is refused or not."""

    def load() -> object:
        with suppress(ArtifactError):
            return load_artifact(path)

    tracemalloc.start()
    try:
        return peak_bytes(load) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="neither a folder nor a plain file"):
        load_artifact(tmp_path / "pipe")


def test_a_file_that_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise ArtifactError("not the same")

    monkeypatch.setattr("questlm.export.pack._check_codes", broken)
    with pytest.raises(ArtifactError, match="not the same"):
        pack(trained(SPECS["quest"]), tmp_path / "model.quest", single_file=True)
    assert list(tmp_path.iterdir()) == []
