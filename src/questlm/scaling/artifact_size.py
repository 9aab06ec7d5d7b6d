"""Bytes of everything that `quest pack` writes, known before training. No torch.

The tensors are counted by `questlm.scaling.size`. This module writes the JSON of a planned model as packing would, and
measures it: config.json, the header of model.safetensors, MANIFEST.json.
"""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from questlm.artifact.for_transformers import TOKENIZER_CONFIG_NAME, model_settings, tokenizer_settings
from questlm.artifact.format import (
    CONFIG_NAME,
    FORMAT,
    TENSORS_NAME,
    TOKENIZER_NAME,
    VERSION,
    ArtifactConfig,
    QuantizationConfig,
    expected_tensors,
)
from questlm.artifact.shapes import matrix_shapes
from questlm.config import DataConfig, ModelConfig, QuantSpec
from questlm.json_files import canonical_json
from questlm.quant.layer_formats import layer_formats
from questlm.scaling.size import PackedSizes, format_of_layer, format_of_left_out
from questlm.tokenizer_files import END_OF_TEXT

__all__ = ["artifact_bytes", "artifact_overhead", "folder_bytes", "planned_config", "planned_tokenizer"]

_TOKENIZER_ENTRY = 24  # bytes of tokenizer.json for each entry of a byte-level BPE that `quest train` makes
_CODED_TOKENIZER = 0.3  # of that, in a single file
_FILE_BYTES = 8 + 2 * 9 + 32  # of a single file: what it begins with, before its documents, checksum
_SOME_LAYERS = (1, 10, 128)  # from 10 on, their numbers have a digit more
_HASH = "0" * 64


def artifact_bytes(model: ModelConfig, quant: QuantSpec, coded: bool = False, tokenizer: int | None = None) -> int:
    """Return the bytes of the artifact that packing a run of these settings gives.

    A folder is counted to the byte but for what the run records of its data and its loss; a single file is estimated,
    for Gaussian weights.

    Args:
        coded: as a single file.
        tokenizer: bytes of tokenizer.json; None: of one that `quest train` makes; 0: none.
    """
    tokenizer = planned_tokenizer(model.vocab_size or 0) if tokenizer is None else tokenizer
    if coded:
        return PackedSizes(quant, coded=True).of(model) + artifact_overhead(model.layers, quant, True, tokenizer)
    return sum(folder_bytes(model, quant, tokenizer).values())


def planned_tokenizer(vocab_size: int) -> int:
    """Return about how many bytes the tokenizer.json of a trained tokenizer has."""
    return _TOKENIZER_ENTRY * vocab_size


def folder_bytes(
    model: ModelConfig, quant: QuantSpec, tokenizer: int, training: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Return the bytes by part of a folder, which `quest pack` reports as `bytes_by_part`.

    Args:
        tokenizer: bytes of tokenizer.json; 0: none.
        training: what the artifact records of its training; None: what a run with the usual data records.
    """
    config = planned_config(model, quant, training)
    text = canonical_json(config.model_dump(mode="python") | model_settings(model)).encode()
    parts: Counter[str] = Counter()
    for spec in expected_tensors(config).values():
        parts[spec.part] += spec.bytes
    tensors = parts.total()
    parts["header"], parts["config"] = _header_bytes(config), len(text)
    sizes = {CONFIG_NAME: len(text), TENSORS_NAME: tensors + parts["header"]}
    if tokenizer:
        settings = len(canonical_json(tokenizer_settings(END_OF_TEXT)).encode())
        sizes |= {TOKENIZER_NAME: tokenizer, TOKENIZER_CONFIG_NAME: settings}
        parts["tokenizer"] = tokenizer + settings
    manifest = {
        "kind": FORMAT,
        "version": VERSION,
        "files": {name: {"bytes": size, "sha256": _HASH} for name, size in sizes.items()},
        "details": {"bytes_by_part": dict(parts), "parameters": model.parameters},
        "digest": _HASH,
    }
    parts["manifest"] = len(canonical_json(manifest).encode())
    return dict(parts)


def artifact_overhead(layers: int, quant: QuantSpec, coded: bool, tokenizer: int) -> int:
    """Return about how many bytes an artifact has beside its tensors; a few of a hundred depend on the shape."""
    own = float(np.interp(layers, _SOME_LAYERS, _overheads(quant, coded)))  # names of layers make nearly all of it
    return round(own + (_CODED_TOKENIZER * tokenizer if coded else tokenizer))


@cache
def _overheads(quant: QuantSpec, coded: bool) -> list[int]:
    """Bytes beside tensors and tokenizer, for each of `_SOME_LAYERS`."""
    found = []
    for layers in _SOME_LAYERS:
        if coded:
            text = canonical_json(planned_config(_typical(layers), quant, None).model_dump(mode="python"))
            found.append(len(lzma.compress(text.encode())) + _FILE_BYTES)
        else:
            parts = folder_bytes(_typical(layers), quant, tokenizer=1)
            found.append(sum(parts[part] for part in ("header", "config", "manifest", "tokenizer")) - 1)
    return found


def _typical(layers: int) -> ModelConfig:
    return ModelConfig(layers=layers, hidden=640, heads=5, vocab_size=2048)


def planned_config(model: ModelConfig, quant: QuantSpec, training: Mapping[str, Any] | None) -> ArtifactConfig:
    """Return the config.json of a model that is trained by these settings."""
    shapes = matrix_shapes(model)
    quantised = layer_formats(quant, {name: shape for name, shape in shapes.items() if name != "embed"})
    formats = {
        name: format_of_layer(quantised[name]) if name in quantised else format_of_left_out(quant) for name in shapes
    }
    return ArtifactConfig(
        format=FORMAT,
        version=VERSION,
        model=model,
        quantization_config=QuantizationConfig.of(quant, formats),
        eos_token_id=0,
        training=dict(_usual_training(model.vocab_size or 0) if training is None else training),
    )


def _usual_training(vocab_size: int) -> dict[str, Any]:
    data = DataConfig(vocab_size=vocab_size) if vocab_size >= 256 else DataConfig()
    final = {"loss": 3.141592653589793, "perplexity": 23.14069263277927, "bits_per_byte": 1.234567890123456}
    return {
        "data": data.model_dump(mode="json", exclude={"cache_dir", "tokenizer"}),
        "seq_len": 512,
        "tokens": 10**9,
        "final": {**final, "bits_per_byte_without_end": 1.234567890123456, "tokens": 10**6, "seconds": 12.34},
        "val_hash": _HASH,
    }


def _header_bytes(config: ArtifactConfig) -> int:
    """Bytes of the length and the header of model.safetensors, as that library writes it.

    Tensors lie in the order of their dtypes, the widest first, and then of their names; the header is filled up to a
    multiple of 8 bytes.
    """
    widest = {"F32": 0, "BF16": 1, "F16": 2, "I8": 3, "U8": 4}
    specs = sorted(expected_tensors(config).items(), key=lambda item: (widest[item[1].dtype], item[0]))
    header, place = {}, 0
    for name, spec in specs:
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [place, place + spec.bytes]}
        place += spec.bytes
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8
