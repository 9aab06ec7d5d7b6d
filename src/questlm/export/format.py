"""What an artifact holds: a folder `questlm-artifact`, version 1.

    config.json        ArtifactConfig below: the model's shape, the format of every weight matrix, where it came from
    model.safetensors  `expected_tensors` below, and nothing else
    tokenizer.json     optional, of the tokenizers library
    MANIFEST.json      size and SHA-256 of each file, and bytes by part (questlm.files)

Every matrix M (embedding, linear layers, head) is stored in one of four ways, by `quantization_config`:

    weight format       tensors
    a grid              M.codes uint8 (out, packed_width(in, levels)), bit-packed; M.step float32 (out, 1)
    "float32"           M.weight float32 (out, in)
    "bf16"              M.weight bfloat16 (out, in)
    "int8"              M.codes int8 (out, in), -127 to 127; M.scale float32 (out, 1)

`formats` lists the distinct formats and `layers` gives each matrix the index of its own, so that any layer may differ.
Norms are float32. A tied head is stored once, as the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from questlm.config import ModelConfig
from questlm.config.schema import Bits, Section
from questlm.ops import Grid, LinearFormat, packed_width

__all__ = [
    "CONFIG_NAME",
    "FORMAT",
    "TENSORS_NAME",
    "TOKENIZER_NAME",
    "VERSION",
    "ArtifactConfig",
    "GridConfig",
    "QuantizationConfig",
    "StoredForm",
    "TensorSpec",
    "WeightFormat",
    "expected_tensors",
    "matrix_shapes",
    "norm_names",
]

FORMAT: Final = "questlm-artifact"
VERSION: Final = 1
CONFIG_NAME = "config.json"
TENSORS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.json"

StoredForm = Literal["float32", "bf16", "int8"]
"""Ways to store a matrix that is not quantised by a method."""

_ROPE_THETA_LIMITS = (1e-30, 1e30)  # beyond these the rotary frequencies overflow float32
_BYTES = {"U8": 1, "I8": 1, "BF16": 2, "F32": 4}


class GridConfig(Section):
    """A uniform grid, as `questlm.ops.Grid`, of a size that codes can be packed in."""

    levels: Annotated[int, Field(ge=2, le=256)]
    step_per_rms: Annotated[float, Field(ge=1e-6, le=1e6)]

    @model_validator(mode="after")
    def _fits(self) -> GridConfig:
        if self.levels != 3 and self.levels & (self.levels - 1):
            raise ValueError(f"levels {self.levels} is neither 3 nor a power of two")
        return self

    @property
    def grid(self) -> Grid:
        """The same as a value of `questlm.ops`."""
        return Grid(self.levels, self.step_per_rms)


class WeightFormat(Section):
    """How a matrix is stored and multiplied: Hadamard block (1: none), weight, and grid of the activations."""

    block_size: Annotated[int, Field(ge=1, le=65_536)]
    weight: GridConfig | StoredForm
    act: GridConfig | None

    @model_validator(mode="after")
    def _fits(self) -> WeightFormat:
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size {self.block_size} is not a power of two")
        if not self.quantized and self.block_size != 1:
            raise ValueError(f"block_size {self.block_size} rotates a layer that is not quantised; it must be 1")
        return self

    @property
    def quantized(self) -> bool:
        """Whether the product of this layer has a quantised factor."""
        return not isinstance(self.weight, str) or self.act is not None

    @property
    def linear(self) -> LinearFormat:
        """The same as a value of `questlm.ops`."""
        weight = None if isinstance(self.weight, str) else self.weight.grid
        return LinearFormat(self.block_size, weight, self.act.grid if self.act else None)


class QuantizationConfig(Section):
    """Method and bits, for people; formats and which layer has which, for the program."""

    method: Annotated[str, Field(min_length=1, max_length=64)]
    weight_bits: Bits
    act_bits: Bits
    formats: Annotated[tuple[WeightFormat, ...], Field(min_length=1)]
    layers: dict[str, Annotated[int, Field(ge=0)]] = Field(description="matrix -> index into formats")


class ArtifactConfig(Section):
    """The content of config.json."""

    format: Literal["questlm-artifact"]
    version: Literal[1]
    model: ModelConfig
    quantization_config: QuantizationConfig
    training: dict[str, Any] = Field(description="where the model came from: any JSON")

    @model_validator(mode="after")
    def _fits(self) -> ArtifactConfig:
        if self.model.vocab_size is None:
            raise ValueError("model.vocab_size is missing")
        low, high = _ROPE_THETA_LIMITS
        if not low <= self.model.rope_theta <= high:
            raise ValueError(f"model.rope_theta {self.model.rope_theta} is outside {low} to {high}")
        shapes, named, formats = matrix_shapes(self.model), self.quantization_config.layers, len(self._formats)
        for name in (*shapes.keys() - named.keys(), *named.keys() - shapes.keys()):
            raise ValueError(f"quantization_config.layers and the model's shape disagree about the matrix {name!r}")
        for name, index in named.items():
            if index >= formats:
                raise ValueError(f"quantization_config.layers.{name} is {index}, but there are {formats} formats")
            if shapes[name][1] % self._formats[index].block_size:
                raise ValueError(f"the block size of {name} does not divide its {shapes[name][1]} inputs")
        if self.weight_format("embed").quantized:
            raise ValueError("the embedding cannot be quantised by a grid; its format is float32, bf16 or int8")
        return self

    @property
    def _formats(self) -> tuple[WeightFormat, ...]:
        return self.quantization_config.formats

    def weight_format(self, name: str) -> WeightFormat:
        """Format of the matrix `name`."""
        return self._formats[self.quantization_config.layers[name]]

    def weight_formats(self) -> Iterator[tuple[str, WeightFormat]]:
        """(name, format) of every stored matrix, in the order of the model."""
        return ((name, self.weight_format(name)) for name in matrix_shapes(self.model))


class TensorSpec(NamedTuple):
    """A tensor of model.safetensors: dtype by its safetensors name, shape, and the part it is counted under."""

    dtype: str
    shape: tuple[int, ...]
    part: str

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return _BYTES[self.dtype] * prod(self.shape)


def matrix_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of each matrix by module name: embedding, linear layers, and the head unless it is tied."""
    hidden, width, mlp = model.hidden, model.head_width, model.mlp_width
    block = {
        "attention.q": (model.heads * width, hidden),
        "attention.k": (model.key_value_heads * width, hidden),
        "attention.v": (model.key_value_heads * width, hidden),
        "attention.o": (hidden, model.heads * width),
        "mlp.gate": (mlp, hidden),
        "mlp.up": (mlp, hidden),
        "mlp.down": (hidden, mlp),
    }
    outer = (model.vocab_size or 0, hidden)
    shapes = {"embed": outer}
    shapes |= {f"layers.{index}.{name}": shape for index in range(model.layers) for name, shape in block.items()}
    return shapes if model.tied_head else shapes | {"lm_head": outer}


def norm_names(model: ModelConfig) -> list[str]:
    """Module names of the norms, each with a weight of (hidden,)."""
    inner = [f"layers.{index}.{name}" for index in range(model.layers) for name in ("attention_norm", "mlp_norm")]
    return [*inner, "norm"]


def expected_tensors(config: ArtifactConfig) -> dict[str, TensorSpec]:
    """Every tensor that model.safetensors must hold, by name."""
    shapes = matrix_shapes(config.model)
    tensors = {
        f"{name}.{kind}": spec
        for name, form in config.weight_formats()
        for kind, spec in _matrix_tensors(shapes[name], form, _PARTS.get(name)).items()
    }
    norm = TensorSpec("F32", (config.model.hidden,), "norms")
    return tensors | {f"{name}.weight": norm for name in norm_names(config.model)}


_PARTS = {"embed": "embedding", "lm_head": "head"}


def _matrix_tensors(shape: tuple[int, int], form: WeightFormat, part: str | None) -> dict[str, TensorSpec]:
    rows, columns = shape
    if form.weight == "int8":
        part = part or "weights"
        return {"codes": TensorSpec("I8", shape, part), "scale": TensorSpec("F32", (rows, 1), part)}
    if isinstance(form.weight, str):
        return {"weight": TensorSpec("BF16" if form.weight == "bf16" else "F32", shape, part or "weights")}
    width = packed_width(columns, form.weight.levels)
    return {
        "codes": TensorSpec("U8", (rows, width), part or "codes"),
        "step": TensorSpec("F32", (rows, 1), part or "steps"),
    }
