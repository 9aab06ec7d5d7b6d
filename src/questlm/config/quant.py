"""What of a model is quantised, and how; settings of single layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from questlm.config.section import Section
from questlm.errors import quoted

__all__ = ["Bits", "Embeddings", "Format", "LayerOverride", "QuantSpec"]

Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, "ternary"]
"""Width of a tensor's codes: 1 to 8 bits, 'ternary' (three levels, log2(3) bits), or 16 for not quantised."""

Format = Literal["int", "ternary", "fp4", "lloydmax", "int-2:4", "bf16-2:4"]
"""Kind of grid: evenly spaced, three levels, E2M1, non-uniform Gaussian; 2:4 sparse weights of 4 bits or in bf16."""


Embeddings = Literal["float", "bf16", "int8", "int7", "int6", "int5", "int4", "int3", "int2"]
"""What matrices that no method quantises are rounded to."""


def _with_bits_of_format(values: Any) -> Any:
    """Settings with the bits that follow from their format, unless bits are given."""
    format = values.get("format") if isinstance(values, dict) else None
    if format == "ternary":
        return {"weight_bits": "ternary", "act_bits": "ternary"} | values
    return {"weight_bits": 16} | values if format == "bf16-2:4" else values


class LayerOverride(Section):
    """Settings for the layers that a pattern names, in place of those of `QuantSpec`; None keeps the latter."""

    method: str | None = None
    weight_bits: Bits | None = None
    act_bits: Bits | None = None
    format: Format | None = None
    act_format: Literal["int", "fp4", "lloydmax"] | None = None
    trust: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        if isinstance(values, int | str):
            return {"weight_bits": values, "act_bits": values, "format": "int", "act_format": "int"}
        return _with_bits_of_format(values)


class QuantSpec(Section):
    """Method, widths and formats of quantisation. A width of 16 means none, so `act_bits=16` quantises weights only."""

    method: str = Field(default="quest", description="name in the table of methods; see `quest methods`")
    weight_bits: Bits = 4
    act_bits: Bits = 4
    format: Format = Field(
        default="int", description="grid of the weights; all but the sparse ones are that of the activations too"
    )
    act_format: Literal["int", "fp4", "lloydmax"] | None = Field(
        default=None, description="grid of the activations; None: that of the weights, 'int' beside sparse weights"
    )
    trust: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="outer trust factor s: gradients pass where |x| <= s times the outermost level; None: the method's",
    )
    block_size: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=128,
        description="size of the Hadamard blocks, a power of two; where 128 does not divide a layer's input dimension, "
        "the largest power of two that does, at least 16, is used",
    )
    embeddings: Embeddings = Field(
        default="bf16",
        description="what embedding, head and other layers left out are trained and shipped in: 'float' (as the model "
        "has them; packed as bf16), 'bf16', 'int8' (8-bit rows), or 'int2' to 'int7' (rows on the Gaussian grid)",
    )
    steps: Literal["fp32", "fp16", "fp8"] = Field(
        default="fp32",
        description="numbers that the weights' steps, one a row, are trained and shipped in; fp8 is E4M3 of 256 times "
        "the step",
    )
    gradual: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="share of the training over which quantisation is faded in, layer by layer; None: the method's own",
    )
    backward: Literal["bf16", "float8"] = Field(
        default="bf16",
        description="numbers of the product that gives the gradient of a layer's input; float8 is faster on NVIDIA "
        "GPUs from Hopper on, and not the published method",
    )
    overrides: dict[str, LayerOverride] = Field(
        default={},
        description="for layers by name or pattern, such as {lm_head: 8, mlp.down: {act_bits: 8}}; the more particular "
        "pattern wins; 16 leaves a layer out, and lm_head is left out unless a pattern names it",
    )

    @model_validator(mode="before")
    @classmethod
    def _bits_of_the_format(cls, values: Any) -> Any:
        return _with_bits_of_format(values)

    @field_validator("overrides", mode="before")
    @classmethod
    def _name_the_pattern(cls, values: Any) -> Any:
        for pattern, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, dict | LayerOverride):
                continue
            if value not in get_args(Bits) or isinstance(value, bool):
                raise ValueError(
                    f"{quoted(pattern)} is given {quoted(value)}; it takes bits (1 to 8, 'ternary', 16) or settings, "
                    f"as in {{mlp.down: 8}} or {{mlp.down: {{act_bits: 8}}}}, with a space after each colon"
                )
        return values

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Method and bits, and what differs from the defaults."""
        always = ("method", "weight_bits", "act_bits")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in always or value != field.default:
                yield name, value

    def __str__(self) -> str:
        return repr(self)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # overrides are a dictionary, which has no hash

    @model_validator(mode="after")
    def _fits(self) -> QuantSpec:
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size {self.block_size} is not a power of two")
        return self

    @property
    def enabled(self) -> bool:
        """Whether any linear layer may be quantised."""
        return self.quantizes or any(self.overridden(override).quantizes for override in self.overrides.values())

    @property
    def quantizes(self) -> bool:
        """Whether layers without an override are quantised."""
        return self.weight_bits != 16 or self.act_bits != 16 or self.format == "bf16-2:4"

    def overridden(self, override: LayerOverride) -> QuantSpec:
        """These settings with an override laid over them."""
        given = override.model_dump(exclude_none=True)
        kept = self.model_dump(exclude={"overrides"})
        return QuantSpec(**kept | given)

    @property
    def label(self) -> str:
        """Short name for tables, such as 'quest-w4a4' or 'bf16'."""
        if not self.enabled:
            return "bf16"
        width = {"ternary": "t"}
        weight, act = (width.get(str(b), str(b)) for b in (self.weight_bits, self.act_bits))
        suffix = "" if self.format in ("int", "ternary") else f"-{self.format.replace(':', '')}"
        suffix += f"-a{self.act_format}" if self.act_format and self.act_format != self.format else ""
        return f"{self.method}{suffix}-w{weight}a{act}{'-mixed' if self.overrides else ''}"
