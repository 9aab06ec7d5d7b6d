"""What an artifact holds: a folder `questlm-artifact`, version 2.

    config.json            ArtifactConfig below: the model's shape, the format of every weight matrix, where it came
                           from; and the shape once more in words of transformers (questlm.artifact.for_transformers)
    model.safetensors      `expected_tensors` below, and nothing else
    tokenizer.json         optional, of the tokenizers library
    tokenizer_config.json  beside it, for transformers
    chat_template.jinja    optional, of transformers
    MANIFEST.json          size and SHA-256 of each file, and bytes by part (questlm.manifest)

Every matrix M (embedding, linear layers, head), (out, in), is stored in one of these ways, by `quantization_config`:

    weight format       tensors
    a grid              M.codes uint8 (out, packed_width(in, levels)), bit-packed; M.step (out, 1): float32, or as
                        `steps` says float16 or uint8 (E4M3 of 256 times the step)
    a 2:4 sparse grid   M.codes of the kept half of each row; M.kept uint8, a bit for each group of entries; M.step
    "float32"           M.weight float32 (out, in)
    "bf16"              M.weight bfloat16 (out, in)
    "int8"              M.codes int8 (out, in), -127 to 127; M.scale float32 (out, 1)
    "bf16-2:4"          M.weight bfloat16 (out, in / 2), the kept half in the Hadamard domain; M.kept

and, where the format says so: M.offset float32 (out, 1); for activations with a learned grid M.act_step and
M.act_offset float32 (1, 1); M.input_norm float32 (in); a narrow branch (the last rows or columns of M) as
M.narrow_codes and M.narrow_step, the other tensors then being those of the wide branch.

`formats` lists the distinct formats and `layers` gives each matrix the index of its own, so that any layer may differ.
Norms and biases (M.bias, float32 (out)) are float32. A tied head is stored once, as the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from math import prod
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from questlm.artifact.shapes import biased_matrices, matrix_shapes, norm_widths
from questlm.config import ModelConfig, QuantSpec
from questlm.config.quant import Bits
from questlm.config.section import Section
from questlm.errors import quoted
from questlm.grid import Grid, LayerFormat, Narrow, Scale, Steps, packed_width

__all__ = [
    "CONFIG_NAME",
    "FORMAT",
    "TENSORS_NAME",
    "TOKENIZER_NAME",
    "VERSION",
    "ArtifactConfig",
    "GridConfig",
    "NarrowBranch",
    "QuantizationConfig",
    "StoredDtype",
    "TensorSpec",
    "WeightFormat",
    "expected_tensors",
    "matrix_tensor_specs",
]

FORMAT: Final = "questlm-artifact"
VERSION: Final = 2
CONFIG_NAME = "config.json"
TENSORS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.json"

StoredDtype = Literal["float32", "bf16", "int8", "bf16-2:4"]
"""Ways to store a matrix that is not quantised by a method."""

_ROPE_THETA_LIMITS = (1e-30, 1e30)  # beyond these the rotary frequencies overflow float32
_BYTES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
_STEPS = {"fp32": "F32", "fp16": "F16", "fp8": "U8"}


class GridConfig(Section):
    """A grid; the fields are those of `questlm.ops.Grid`."""

    levels: Annotated[int, Field(ge=2, le=256)]
    step_per_scale: Annotated[float, Field(ge=1e-6, le=1e6)] | None
    scale: Scale = "rms"
    zero: Annotated[float, Field(ge=0, le=255)] | None = None
    table: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] | None = None
    group: Literal[0, 2] = 0

    @model_validator(mode="after")
    def _fits(self) -> GridConfig:
        if self.group and (self.table or self.zero is not None or self.levels == 256):
            raise ValueError("a sparse grid is evenly spaced around 0 and leaves a code for the entries it drops")
        if self.zero is not None and self.zero > self.levels - 1:
            raise ValueError(f"zero {self.zero} is not one of {self.levels} levels")
        _ = self.grid  # building the grid validates the table
        return self

    @classmethod
    def of(cls, grid: Grid) -> GridConfig:
        """Return the section of config.json that describes it."""
        return cls(**asdict(grid))

    @property
    def grid(self) -> Grid:
        """The grid as a `questlm.ops.Grid`."""
        return Grid(self.levels, self.step_per_scale, self.scale, self.zero, self.table, self.group)


class NarrowBranch(Section):
    """The 8-bit branch of pQuant: the last `width` rows or columns of a matrix, with a grid of their own."""

    axis: Literal["rows", "columns"]
    width: Annotated[int, Field(ge=1)]
    weight: GridConfig

    @classmethod
    def of(cls, narrow: Narrow) -> NarrowBranch:
        """Return the section of config.json that describes it."""
        return cls(axis=narrow.axis, width=narrow.width, weight=GridConfig.of(narrow.grid))


class WeightFormat(Section):
    """How a matrix is stored and multiplied.

    Attributes:
        block_size: of the Hadamard transform; 1: none.
        weight: grid of the codes, or the dtype of a matrix that is not codes.
        act: grid of the activations; None: they are not quantised.
        weight_offset: whether the weights have an offset beside their step sizes.
        act_offset: whether the activations have a learned offset.
        input_norm: epsilon of an RMSNorm before the layer; None: it has none.
        narrow: the 8-bit branch of pQuant; None: the matrix has one branch.
        steps: numbers that the steps of the rows are stored in.
    """

    block_size: Annotated[int, Field(ge=1, le=65_536)]
    weight: GridConfig | StoredDtype
    act: GridConfig | None
    weight_offset: bool = False
    act_offset: bool = False
    input_norm: Annotated[float, Field(gt=0, lt=1)] | None = None
    narrow: NarrowBranch | None = None
    steps: Steps = "fp32"

    @model_validator(mode="after")
    def _fits(self) -> WeightFormat:
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size {self.block_size} is not a power of two")
        if not self.quantized and (self.block_size != 1 or self.input_norm is not None):
            raise ValueError("a layer that is not quantised has block_size 1 and no norm before it")
        if self.quantized and self.weight in ("bf16", "int8"):
            raise ValueError("weights that are multiplied by quantised activations are codes, float32 or bf16-2:4")
        if self.weight_offset and not isinstance(self.weight, GridConfig):
            raise ValueError("only codes have an offset")
        if self.steps != "fp32" and (isinstance(self.weight, str) or self.narrow is not None):
            raise ValueError(f"only the steps of codes in one branch are stored in {self.steps}")
        if self.act_offset and (self.act is None or self.act.step_per_scale is not None):
            raise ValueError("only activations with a learned step have an offset")
        if self.act is not None and (self.act.group or self.act.scale == "absmean"):
            raise ValueError("activations are neither sparse nor scaled by the whole tensor")
        if self.narrow is not None:
            plain = isinstance(self.weight, GridConfig) and not (self.weight.group or self.weight_offset)
            if not plain or self.narrow.weight.group or self.block_size != 1:
                raise ValueError("a narrow branch stands beside dense codes without offset and rotation")
        return self

    @classmethod
    def of(cls, layer: LayerFormat) -> WeightFormat:
        """The format of a quantised layer."""
        weight: GridConfig | StoredDtype = "float32"
        if layer.weight is not None:
            grid, values_format = layer.weight.grid, layer.weight.values_format
            weight = values_format or "float32" if grid is None else GridConfig.of(grid)
        act, narrow = layer.act, layer.narrow
        return cls(
            block_size=layer.block_size,
            weight=weight,
            act=None if act is None or act.grid is None else GridConfig.of(act.grid),
            weight_offset=layer.weight is not None and layer.weight.offset,
            act_offset=act is not None and act.offset,
            input_norm=layer.input_norm,
            narrow=None if narrow is None else NarrowBranch.of(narrow),
            steps="fp32" if layer.weight is None else layer.weight.steps,
        )

    @property
    def quantized(self) -> bool:
        """Whether the product of this layer has a quantised factor."""
        return not isinstance(self.weight, str) or self.weight == "bf16-2:4" or self.act is not None

    @property
    def looks_up(self) -> bool:
        """Whether a row of this matrix is its values as they are, so that it can be an embedding."""
        if not isinstance(self.weight, GridConfig):
            return not self.quantized
        plain = self.block_size == 1 and self.act is None and self.input_norm is None and self.narrow is None
        return plain and not (self.weight.group or self.weight_offset)

    @property
    def grids(self) -> tuple[Grid | None, Grid | None]:
        """Grids of weight and activations as `questlm.grid.Grid`; None for a factor that is not codes."""
        weight = None if isinstance(self.weight, str) else self.weight.grid
        return weight, None if self.act is None else self.act.grid

    def wide_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (out, in) of a matrix without its narrow branch."""
        rows, columns = shape
        if self.narrow is None:
            return shape
        rows_are_cut = self.narrow.axis == "rows"
        return (rows - self.narrow.width, columns) if rows_are_cut else (rows, columns - self.narrow.width)

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Refuse a matrix (out, in) that this format cannot store.

        Raises:
            ValueError: with the reason.
        """
        rows, columns = shape
        if columns % self.block_size:
            raise ValueError(f"the block size {self.block_size} does not divide {columns} inputs")
        if min(self.wide_shape(shape)) < 1:
            raise ValueError(f"the narrow branch takes all of {rows} x {columns}")
        group = 1 if self.weight == "bf16-2:4" else self.weight.group if isinstance(self.weight, GridConfig) else 0
        if group and columns % (4 * group):
            raise ValueError(f"2:4 sparsity does not divide {columns} inputs")


class QuantizationConfig(Section):
    """Method and bits of most layers, for people; and the format of every layer, for programs."""

    quant_method: Literal["questlm"] = Field(
        default="questlm", description="by this transformers finds questlm.integrations.transformers"
    )
    method: Annotated[str, Field(min_length=1, max_length=64)]
    weight_bits: Bits
    act_bits: Bits
    formats: Annotated[tuple[WeightFormat, ...], Field(min_length=1)]
    layers: dict[str, Annotated[int, Field(ge=0)]] = Field(description="matrix -> index into formats")

    @classmethod
    def of(cls, spec: QuantSpec, formats: Mapping[str, WeightFormat]) -> QuantizationConfig:
        """Return that of a model whose layers mostly train by `spec`, and whose matrices have these formats by name."""
        distinct = tuple(dict.fromkeys(formats.values()))
        return cls(
            method=spec.method,
            weight_bits=spec.weight_bits,
            act_bits=spec.act_bits,
            formats=distinct,
            layers={name: distinct.index(weight_format) for name, weight_format in formats.items()},
        )


class ArtifactConfig(Section):
    """The content of config.json."""

    format: Literal["questlm-artifact"]
    version: Literal[2]
    model: ModelConfig
    quantization_config: QuantizationConfig
    eos_token_id: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="id of the token that ends a document; None: by the tokenizer's usual names"
    )
    training: dict[str, Any] = Field(description="where the model came from: any JSON")

    @model_validator(mode="after")
    def _fits(self) -> ArtifactConfig:
        if self.model.vocab_size is None:
            raise ValueError("model.vocab_size is missing")
        if self.eos_token_id is not None and self.eos_token_id >= self.model.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is none of the {self.model.vocab_size} ids")
        low, high = _ROPE_THETA_LIMITS
        if not low <= self.model.rope_theta <= high:
            raise ValueError(f"model.rope_theta {self.model.rope_theta} is outside {low} to {high}")
        shapes, named, formats = matrix_shapes(self.model), self.quantization_config.layers, len(self._formats)
        for name in (*shapes.keys() - named.keys(), *named.keys() - shapes.keys()):
            raise ValueError(
                f"quantization_config.layers and the model's shape disagree about the matrix {quoted(name)}"
            )
        for name, index in named.items():
            if index >= formats:
                raise ValueError(f"quantization_config.layers.{name} is {index}, but there are {formats} formats")
            try:
                self._formats[index].check_shape(shapes[name])
            except ValueError as problem:
                raise ValueError(f"{name}: {problem}") from None
        if not self.weight_format("embed").looks_up:
            raise ValueError(
                "the embedding is looked up, so it has neither rotation, norm, sparsity, offset nor branch"
            )
        return self

    @property
    def _formats(self) -> tuple[WeightFormat, ...]:
        return self.quantization_config.formats

    def weight_format(self, name: str) -> WeightFormat:
        """Return the format of the matrix `name`."""
        return self._formats[self.quantization_config.layers[name]]

    def weight_formats(self) -> Iterator[tuple[str, WeightFormat]]:
        """Yield (name, format) of every stored matrix, in the order of the model."""
        return ((name, self.weight_format(name)) for name in matrix_shapes(self.model))


class TensorSpec(NamedTuple):
    """A tensor of model.safetensors.

    Attributes:
        dtype: of safetensors.
        shape: of the tensor.
        part: what its bytes are counted under.
        codes: levels of the codes that are packed in it, and how many in a row; None: it holds no packed codes.
    """

    dtype: str
    shape: tuple[int, ...]
    part: str
    codes: tuple[int, int] | None = None

    @property
    def bytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return _BYTES[self.dtype] * prod(self.shape)


def expected_tensors(config: ArtifactConfig) -> dict[str, TensorSpec]:
    """Return every tensor that model.safetensors must hold, by name."""
    shapes = matrix_shapes(config.model)
    tensors = {
        f"{name}.{kind}": spec
        for name, weight_format in config.weight_formats()
        for kind, spec in matrix_tensor_specs(shapes[name], weight_format, _PARTS.get(name)).items()
    }
    biases = {f"{name}.bias": TensorSpec("F32", shapes[name][:1], "biases") for name in biased_matrices(config.model)}
    widths = norm_widths(config.model).items()
    return tensors | {f"{name}.weight": TensorSpec("F32", (width,), "norms") for name, width in widths} | biases


_PARTS = {"embed": "embedding", "lm_head": "head"}


def matrix_tensor_specs(
    shape: tuple[int, int], weight_format: WeightFormat, part: str | None = None
) -> dict[str, TensorSpec]:
    """The tensors of a matrix (out, in), by kind: 'codes', 'step', ...

    Args:
        part: what all of it is counted under; None: codes, steps and weights are counted apart.
    """
    rows, columns = weight_format.wide_shape(shape)
    codes, steps, weights = (part or name for name in ("codes", "steps", "weights"))
    number = TensorSpec("F32", (1, 1), steps)
    tensors: dict[str, TensorSpec] = {}
    if weight_format.weight == "int8":
        tensors |= {"codes": TensorSpec("I8", shape, weights), "scale": TensorSpec("F32", (rows, 1), weights)}
    elif weight_format.weight == "bf16-2:4":
        tensors |= {"weight": TensorSpec("BF16", (rows, columns // 2), weights)}
        tensors |= {"kept": _packed_spec(rows, columns, 2, weights)}
    elif isinstance(weight_format.weight, str):
        tensors |= {"weight": TensorSpec("BF16" if weight_format.weight == "bf16" else "F32", shape, weights)}
    else:
        grid = weight_format.weight
        stored = columns // 2 if grid.group else columns
        tensors |= {"codes": _packed_spec(rows, stored, grid.levels, codes)}
        tensors |= {"step": TensorSpec(_STEPS[weight_format.steps], (rows, 1), steps)}
        if grid.group:
            tensors |= {"kept": _packed_spec(rows, columns // grid.group, 2, codes)}
    if weight_format.weight_offset:
        tensors |= {"offset": TensorSpec("F32", (rows, 1), steps)}
    if weight_format.act is not None and weight_format.act.step_per_scale is None:
        tensors |= {"act_step": number}
    if weight_format.act_offset:
        tensors |= {"act_offset": number}
    if weight_format.input_norm is not None:
        tensors |= {"input_norm": TensorSpec("F32", (shape[1],), "norms")}
    if weight_format.narrow is not None:
        narrow_rows, narrow_columns = (
            (weight_format.narrow.width, columns)
            if weight_format.narrow.axis == "rows"
            else (rows, weight_format.narrow.width)
        )
        levels = weight_format.narrow.weight.levels
        tensors |= {"narrow_codes": _packed_spec(narrow_rows, narrow_columns, levels, codes)}
        tensors |= {"narrow_step": TensorSpec("F32", (narrow_rows, 1), steps)}
    return tensors


def _packed_spec(rows: int, length: int, levels: int, part: str) -> TensorSpec:
    return TensorSpec("U8", (rows, packed_width(length, levels)), part, (levels, length))
