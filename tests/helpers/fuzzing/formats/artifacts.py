"""Packed models: their files, and single tensors of artifacts of many methods."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models

import questlm
from helpers.fuzzing.folders import Folder, rewrite_manifest, write_manifest
from helpers.fuzzing.formats.base import FolderFormat, require
from helpers.fuzzing.mutations import mutated_bytes, mutated_json, mutated_tensors
from questlm.artifact.read import load_artifact
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.config.quant import LayerOverride
from questlm.data import TokenStream
from questlm.errors import ArtifactError
from questlm.evaluation import evaluate
from questlm.export.pack import pack
from questlm.inference.engine import PackedModel
from questlm.manifest import MANIFEST_NAME
from questlm.models import Llama

__all__ = ["Artifacts", "SingleFiles", "Tensors", "redigest"]

_SHAPE = ModelConfig(layers=1, hidden=16, heads=2, mlp_hidden=32, vocab_size=24)
_LARGER = _SHAPE.model_copy(update={"hidden": 64, "mlp_hidden": 256})  # whose codes are worth coding
_IDS = np.arange(9, dtype=np.uint16)
_TENSORS = "model.safetensors"
_SPECS = {
    "quest-4": QuantSpec(weight_bits=4, act_bits=4, embeddings="bf16"),
    "quest-1-int8": QuantSpec(weight_bits=1, act_bits=1, embeddings="int8"),
    "ternary": QuantSpec(weight_bits="ternary", act_bits=4, embeddings="int8"),
    "sparse": QuantSpec(format="int-2:4", weight_bits=4, act_bits=4, act_format="int", embeddings="bf16"),
    "sparse-bf16": QuantSpec(format="bf16-2:4", act_bits=8, act_format="int", embeddings="bf16"),
    "learned": QuantSpec(method="lsq", weight_bits=3, act_bits=3, embeddings="float"),
    "float4": QuantSpec(format="fp4", embeddings="bf16"),
    "mixed": QuantSpec(
        overrides={"lm_head": LayerOverride.model_validate(8), "mlp.down": LayerOverride(act_bits=8)}, embeddings="bf16"
    ),
}


def _pack(spec: QuantSpec, path: Path, single_file: bool = False) -> None:
    model = questlm.prepare(Llama(_SHAPE).initialize(0), spec)
    model(torch.from_numpy(_IDS.astype(np.int64))[None])  # quantisers that learn begin from a batch
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0")).to_str()
    pack(
        model.eval(),
        path,
        tokenizer=tokenizer,
        training={"seq_len": 8, "data": {"source": "x"}},
        single_file=single_file,
    )


def _use(path: Path) -> None:
    """Load an artifact, compare what was loaded with the file, and run it."""
    artifact = load_artifact(path)
    if path.is_dir():
        own = (path / _TENSORS).read_bytes()
        require(_same(artifact.tensors, own), "tensors that were read are not those of the file")
    model = PackedModel(artifact, torch.device("cpu"), torch.float32, stay_packed=True)
    assert artifact.config.model.vocab_size is not None
    result = evaluate(model.logits, TokenStream([_IDS % artifact.config.model.vocab_size]), 8, show_progress=False)
    if not np.isfinite(result.loss):  # as `quest eval` says
        raise ArtifactError(f"the loss is {result.loss}")
    list(model.stream_ids([1, 2], GenerationOptions(max_new_tokens=2, temperature=0)))


def _same(tensors: Mapping[str, torch.Tensor], data: bytes) -> bool:
    """Whether tensors are those of a safetensors file, read here without the library."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    own = {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}
    return own == {name: data[end:][slice(*entry["data_offsets"])] for name, entry in header.items()}


class Artifacts(FolderFormat):
    """Any file of an artifact, in most inputs with a new manifest."""

    name = "artifact"

    def build(self, samples: Path) -> None:
        _pack(_SPECS["ternary"], samples / "a")

    def mutate(self, draw: random.Random) -> str:
        name = draw.choice(("config.json", "config.json", "model.safetensors", "tokenizer.json", MANIFEST_NAME))
        name = f"a/{name}"
        old, folder = self.folder.files[name], self.folder.path / "a"
        if draw.random() < 0.05:
            return self.folder.displace(draw, name)
        if draw.random() < 0.1:
            new, what = mutated_bytes(draw, old)
            self.folder.write(name, new)
        elif name.endswith(MANIFEST_NAME):
            new, what = mutated_json(draw, old.decode())
            self.folder.write(name, new)
            what += redigest(draw, folder)
        else:
            new, what = mutated_tensors(draw, old) if name.endswith("safetensors") else mutated_json(draw, old.decode())
            self.folder.write(name, new)
        if not name.endswith(MANIFEST_NAME) and draw.random() < 0.9:
            rewrite_manifest(folder)
            what += ", with a new manifest"
        return f"{name}: {what}"

    def read(self) -> None:
        _use(self.folder.path / "a")


def redigest(draw: random.Random, folder: Path) -> str:
    """Give a changed manifest the digest that belongs to it, in most cases and where it is one."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
        del manifest["digest"]
        if draw.random() < 0.9:
            write_manifest(folder, manifest)
            return ", with its digest"
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        pass
    return ""


class Tensors(FolderFormat):
    """The tensors of artifacts of many methods, always with a new manifest."""

    name = "tensors"
    _chosen = ""

    def build(self, samples: Path) -> None:
        for name, spec in _SPECS.items():
            _pack(spec, samples / name)

    def open(self, samples: Path, scratch: Path) -> None:
        self.folder = Folder(samples, scratch / "it")

    def mutate(self, draw: random.Random) -> str:
        self._chosen = draw.choice(sorted(_SPECS))
        name = f"{self._chosen}/{_TENSORS}"
        data, what = mutated_tensors(draw, self.folder.files[name])
        self.folder.write(name, data)
        self.folder.write(f"{self._chosen}/{MANIFEST_NAME}", self.folder.files[f"{self._chosen}/{MANIFEST_NAME}"])
        rewrite_manifest(self.folder.path / self._chosen)
        return f"{self._chosen}: {what}"

    def read(self) -> None:
        _use(self.folder.path / self._chosen)


class SingleFiles(FolderFormat):
    """Single files of several methods, most of them with the checksum that belongs to the changed bytes."""

    name = "single"
    _chosen = ""

    def build(self, samples: Path) -> None:
        for name in ("quest-1-int8", "ternary", "sparse", "learned"):
            _pack(_SPECS[name], samples / f"{name}.quest", single_file=True)
        model = questlm.prepare(Llama(_LARGER).initialize(0), _SPECS["quest-4"])
        pack(model.eval(), samples / "coded.quest", single_file=True)

    def mutate(self, draw: random.Random) -> str:
        self._chosen = draw.choice(sorted(self.folder.files))
        if draw.random() < 0.05:
            return self.folder.displace(draw, self._chosen)
        old = self.folder.files[self._chosen]
        if draw.random() < 0.1:
            new, what = mutated_bytes(draw, old)
            self.folder.write(self._chosen, new)
            return f"{self._chosen}: {what}"
        new, what = mutated_bytes(draw, old[:-32])
        self.folder.write(self._chosen, new + hashlib.sha256(new).digest())
        return f"{self._chosen}: {what}, with its checksum"

    def read(self) -> None:
        _use(self.folder.path / self._chosen)
