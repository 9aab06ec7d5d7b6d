"""The format `compressed-tensors`: weights of few bits, packed, which transformers and vLLM load without questlm.

The library compressed-tensors stores a matrix as integers of 1 to 8 bits, packed into 32-bit words, and a scale for
each row (its format `pack-quantized`). The half-integer levels of a b-bit grid become odd integers of half the step,
which take b + 1 bits. The rotation of inputs is its transform `hadamard`, block-diagonal, applied while the model runs.
Both give the numbers that the packed model has. Matrices that it cannot hold so, embedding and head are stored as they
are, or in float32.

transformers 5 reads the integers and knows nothing of transforms: without them the model computes nonsense, so
README.md in the folder has the lines that add them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.dense import dense_state_dict
from questlm.artifact.read import Artifact
from questlm.artifact.shapes import matrix_shapes
from questlm.errors import ConfigError
from questlm.export.formats import ExportFormat
from questlm.export.hugging_face import write_folder
from questlm.export.integers import IntegerRows, integer_rows
from questlm.export.plain import plain_logits, require_plain, unrounded_inputs
from questlm.models import module_to_hugging_face, names

__all__ = ["FORMAT", "to_compressed_tensors"]

_METHOD, _LAYOUT = "compressed-tensors", "pack-quantized"
_WORD_BYTES = 4
_MOST_BITS = 8

_README = """# Packed weights for transformers

`pip install transformers compressed-tensors`, and in this folder:

```python
import json
from pathlib import Path

from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".")
{lines}```
{why}"""
_TRANSFORM_LINES = """
from compressed_tensors.transform import TransformConfig, apply_transform_config

settings = json.loads(Path("config.json").read_text())["quantization_config"]["transform_config"]
if not hasattr(model, "transform_config"):  # a version of transformers may have done it
    apply_transform_config(model, TransformConfig(**settings))
"""
_WHY = """
The weights are rotated, and so must the inputs of their layers be. transformers 5 does not do that by itself: without
the last lines the model computes nonsense.
"""


def _difference(artifact: Artifact) -> str | None:
    require_plain(artifact, "transformers")
    if not any(True for _ in _packed(artifact)):
        raise ConfigError(
            "this model has no layer whose weights are whole numbers of 1 to 8 bits times a step of their row, so "
            "compressed-tensors cannot hold it in fewer bits; export it with --format hf"
        )
    return unrounded_inputs(artifact, "transformers with compressed-tensors")


def _logits(artifact: Artifact) -> Callable[[Tensor], Tensor]:
    return plain_logits(artifact, dense_state_dict(artifact))


def to_compressed_tensors(artifact: Artifact, out: Path) -> None:
    """Write a folder that transformers with the package compressed-tensors loads.

    Raises:
        ConfigError: `out` exists, or the format cannot hold the model.
    """
    _difference(artifact)
    weights = dense_state_dict(artifact)
    if artifact.config.model.tied_head:
        del weights["lm_head.weight"]
    for name, weight_format in artifact.config.weight_formats():
        if weight_format.weight == "bf16":
            weights[f"{name}.weight"] = weights[f"{name}.weight"].to(torch.bfloat16)
    bits: dict[int, list[str]] = defaultdict(list)
    blocks: dict[int, list[str]] = defaultdict(list)
    packed: dict[str, Tensor] = {}
    for name, rows in _packed(artifact):
        del weights[f"{name}.weight"]
        theirs = module_to_hugging_face(name)
        packed |= {f"{theirs}.{kind}": tensor for kind, tensor in _packed_tensors(rows).items()}
        bits[_bits(rows)].append(theirs)
        blocks[artifact.config.weight_format(name).block_size].append(theirs)
    for size, layers in blocks.items():
        if size > 1:
            packed[f"{layers[0]}.{_transform_name(size)}_input.weight"] = _hadamard_signs(size)
    dense = [module_to_hugging_face(name.removesuffix(".weight")) for name, t in weights.items() if t.ndim == 2]
    ignored = sorted({*dense, "lm_head"} - {"model.embed_tokens"})
    settings = {"quantization_config": _quantization_config(bits, blocks, ignored)}
    rotated = any(size > 1 for size in blocks)
    readme = _README.format(lines=_TRANSFORM_LINES if rotated else "", why=_WHY if rotated else "")
    write_folder(artifact, out, packed | names.to_hugging_face(weights), settings, readme)


def _packed(artifact: Artifact) -> Iterator[tuple[str, IntegerRows]]:
    """Name and integers of each matrix of the blocks that is stored packed."""
    for name in matrix_shapes(artifact.config.model):
        if name not in ("embed", "lm_head"):
            rows = integer_rows(artifact, name)
            if rows is not None and _bits(rows) <= _MOST_BITS:
                yield name, rows


def _bits(rows: IntegerRows) -> int:
    """The least number of bits whose signed integers hold a grid."""
    return max(rows.high.bit_length(), (-rows.low - 1).bit_length()) + 1


def _packed_tensors(rows: IntegerRows) -> dict[str, Tensor]:
    bits = _bits(rows)
    codes = (rows.values + 2 ** (bits - 1)).to(torch.uint8)
    packed = ops.pack(codes, 2**bits)
    packed = torch.nn.functional.pad(packed, (0, -packed.shape[1] % _WORD_BYTES)).contiguous()
    return {
        "weight_packed": packed.view(torch.int32),
        "weight_scale": rows.step.contiguous(),
        "weight_shape": torch.tensor(rows.values.shape),
    }


def _transform_name(size: int) -> str:
    return f"hadamard_{size}"


def _hadamard_signs(size: int) -> Tensor:
    """The matrix of a transform, as that library saves it: of -1 and 1, once for all layers that share it.

    A program that does not know transforms warns of a tensor that it does not expect.
    """
    return (ops.hadamard(torch.eye(size), size) * size**0.5).round().to(torch.bfloat16)


def _quantization_config(
    bits: dict[int, list[str]], blocks: dict[int, list[str]], ignored: list[str]
) -> dict[str, Any]:
    """The section of config.json.

    Args:
        bits: names of layers by the bits of their integers.
        blocks: the same by the block size of their transform; 1: none.
        ignored: names of linear layers that are not packed.
    """
    weights = {"type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    groups = {
        f"{number}_bits": {
            "targets": ["Linear"] if len(bits) == 1 else layers,
            "weights": weights | {"num_bits": number},
            "format": _LAYOUT,
        }
        for number, layers in bits.items()
    }
    config = {
        "quant_method": _METHOD,
        "format": _LAYOUT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
    }
    transforms = {
        _transform_name(size): {
            "type": "hadamard",
            "head_dim": size,
            "apply": [
                {
                    "targets": ["Linear"] if len(blocks) == 1 else layers,
                    "location": "input",
                    "ignore": ignored,
                }
            ],
        }
        for size, layers in blocks.items()
        if size > 1
    }
    return config | ({"transform_config": {"config_groups": transforms}} if transforms else {})


FORMAT = ExportFormat(
    _difference,
    _logits,
    to_compressed_tensors,
    "load it by the lines in {out}/README.md, which rotate the inputs of its layers where it needs that",
)
