"""Models of random weights for benchmarks of speed: artifacts of ours, and GGUF files of the same shapes.

Nothing is trained and nothing is computed in float first: codes and blocks are drawn as they are stored. Step sizes
keep activations and logits in an ordinary range.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.format import (
    FORMAT,
    VERSION,
    ArtifactConfig,
    QuantizationConfig,
    TensorSpec,
    WeightFormat,
    expected_tensors,
    matrix_tensor_specs,
)
from questlm.artifact.shapes import block_shapes, matrix_shapes, norm_widths
from questlm.artifact.write import write_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.export.gguf.layout import BLOCK_NAMES, add_shape
from questlm.quant.layer_formats import layer_formats

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WEIGHT_STD = 0.02

_SUPERBLOCK = 256  # entries of a block of the K and TQ types of GGUF


def write_random_artifact(folder: Path, model: ModelConfig, spec: QuantSpec) -> int:
    """Write an artifact with random codes to the new folder; embedding and head are stored as 8-bit rows.

    Returns the bytes of weights that a generated token reads: all but the embedding.
    """
    shapes = matrix_shapes(model)
    linear = {name: shape for name, shape in shapes.items() if name != "embed"}
    by_name = {name: WeightFormat.of(layer) for name, layer in layer_formats(spec, linear).items()}
    rows = WeightFormat(block_size=1, weight="int8", act=None)
    formats = {name: by_name.get(name, rows) for name in shapes}
    config = ArtifactConfig(
        format=FORMAT,
        version=VERSION,
        model=model,
        quantization_config=QuantizationConfig.of(spec, formats),
        training={"note": "random codes, for a benchmark of speed"},
    )
    write_artifact(folder, config, _random_tensors(config), None, lambda written: None)
    return read_bytes(config)


def read_bytes(config: ArtifactConfig) -> int:
    """Bytes of weights that a generated token reads: all but an embedding that is not the head, too."""
    looked_up = () if config.model.tied_head else ("embed.",)
    return sum(tensor.bytes for name, tensor in expected_tensors(config).items() if not name.startswith(looked_up))


def _random_tensors(config: ArtifactConfig) -> dict[str, Tensor]:
    generator, shapes = torch.Generator().manual_seed(0), matrix_shapes(config.model)
    tensors = {}
    for name, weight_format in config.weight_formats():
        for kind, spec in matrix_tensor_specs(shapes[name], weight_format).items():
            tensors[f"{name}.{kind}"] = _random_tensor(kind, spec, shapes[name], weight_format, generator)
    return tensors | {f"{name}.weight": torch.ones(width) for name, width in norm_widths(config.model).items()}


def _random_tensor(
    kind: str, spec: TensorSpec, shape: tuple[int, int], weight_format: WeightFormat, generator: torch.Generator
) -> Tensor:
    grid = None if isinstance(weight_format.weight, str) else weight_format.weight.grid
    if kind == "scale":
        return torch.full(spec.shape, _WEIGHT_STD / 64)
    if kind == "codes" and grid is None:
        return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
    if kind == "step" and grid is not None:
        return torch.full(spec.shape, 3.5 * _WEIGHT_STD / grid.levels)
    if kind == "codes" and grid is not None:
        return ops.pack(torch.randint(grid.levels, shape, dtype=torch.uint8, generator=generator), grid.levels)
    raise ValueError(f"no random values for the tensor {kind!r}")


def write_random_gguf(path: Path, model: ModelConfig, kind: str) -> int:
    """Write a GGUF file of a Llama with random blocks, with ids in place of a tokenizer.

    Returns the bytes of weights that a generated token reads: all but the embedding.

    Args:
        kind: Q4_0, TQ2_0 or F16, for the linear layers of the blocks. Head and embedding are of the types that
            llama-quantize chooses beside it, and rows that are no multiple of 256 take the types that it falls back to.
    """
    import gguf

    file_types = {"F16": "MOSTLY_F16", "Q4_0": "MOSTLY_Q4_0", "TQ2_0": "MOSTLY_TQ2_0"}
    writer = gguf.GGUFWriter(path, "llama")
    add_shape(writer, model, context=4096)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    generator, shapes, read = np.random.default_rng(0), block_shapes(model), 0
    outer, norm = (model.vocab_size or 0, model.hidden), np.ones(model.hidden, np.float32)

    def add(name: str, shape: tuple[int, int], wanted: str) -> int:
        stored = _fitting(wanted, shape[1])
        blocks = _random_blocks(stored, shape, generator)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[stored])
        return blocks.nbytes

    add("token_embd", outer, {"TQ2_0": "Q4_K"}.get(kind, kind))
    for index in range(model.layers):
        for name, shape in shapes.items():
            read += add(f"blk.{index}.{BLOCK_NAMES[name]}", shape, kind)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{index}.{name}.weight", norm)
    writer.add_tensor("output_norm.weight", norm)
    read += add("output", outer, "F16" if kind == "F16" else "Q6_K")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def _fitting(kind: str, columns: int) -> str:
    """The type that llama-quantize takes where rows of `columns` do not fill the blocks of `kind`."""
    if columns % _SUPERBLOCK == 0:
        return kind
    return {"TQ2_0": "Q4_0", "Q4_K": "Q5_0", "Q6_K": "Q8_0"}.get(kind, kind)


def _random_blocks(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> NDArray[Any]:
    """Rows of valid blocks of a GGUF type: uint8 (rows, bytes of a row), or float16 values (rows, columns)."""
    if kind == "F16":
        return (_WEIGHT_STD * generator.standard_normal(shape, np.float32)).astype(np.float16)
    entries, size, scales, levels = _LAYOUTS[kind]
    blocks = generator.integers(0, 256, (prod(shape) // entries, size), np.uint8)
    if kind == "TQ2_0":  # two bits an entry, of which 3 is no code
        blocks &= ~(blocks << 1) | 0x55
    for offset, value in scales:
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(value * _WEIGHT_STD).tobytes(), np.uint8)
    if levels is not None:  # Q6_K: signed 8-bit scales of 16 entries each
        blocks[:, levels] = 16
    return blocks.reshape(shape[0], -1)


# entries and bytes of a block; the fp16 numbers in it (byte, value in standard deviations of a weight); other scales
_LAYOUTS: dict[str, tuple[int, int, tuple[tuple[int, float], ...], slice | None]] = {
    "Q4_0": (32, 18, ((0, 0.2),), None),
    "Q5_0": (32, 22, ((0, 0.1),), None),
    "Q8_0": (32, 34, ((0, 0.014),), None),
    "Q4_K": (256, 144, ((0, 0.004), (2, 0.03)), None),
    "Q6_K": (256, 210, ((208, 0.004),), slice(192, 208)),
    "TQ2_0": (256, 66, ((64, 1.2),), None),
}
