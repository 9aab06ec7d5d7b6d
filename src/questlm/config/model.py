"""The shape of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from questlm.config.section import Section
from questlm.errors import ConfigError
from questlm.tokenizer_files import LARGEST_VOCABULARY

__all__ = ["ModelConfig", "RopeScaling"]


class RopeScaling(Section):
    """Rotary frequencies changed for texts longer than those a model was first trained on, as in transformers.

    `linear` divides all by `factor`; `llama3` divides those of waves longer than original_max_position /
    low_freq_factor, keeps those shorter than original_max_position / high_freq_factor, and blends between the two.
    """

    kind: Literal["linear", "llama3"]
    factor: Annotated[float, Field(ge=1, le=1e6)]
    low_freq_factor: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    high_freq_factor: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    original_max_position: Annotated[int, Field(ge=1, le=2**31)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> RopeScaling:
        for name in ("low_freq_factor", "high_freq_factor", "original_max_position"):
            if (getattr(self, name) is None) == (self.kind == "llama3"):
                raise ValueError(f"{name} belongs to kind 'llama3', which needs it, and to no other")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high - low < 1e-6:
            raise ValueError(f"high_freq_factor {high} is not larger than low_freq_factor {low}")
        return self


class ModelConfig(Section):
    """Shape of a Llama: RMSNorm, RoPE, SwiGLU, no biases; or of a Qwen2 or Qwen3, which add one thing each."""

    layers: Annotated[int, Field(ge=1, le=1024)] = 4
    hidden: Annotated[int, Field(ge=16, le=65_536, description="width of the residual stream")] = 256
    heads: Annotated[int, Field(ge=1, le=1024, description="attention heads; hidden / heads is the head width")] = 2
    kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="heads of keys and values (grouped-query attention); None: as many as heads"
    )
    head_dim: Annotated[int, Field(ge=2, le=4096)] | None = Field(default=None, description="None: hidden / heads")
    mlp_hidden: Annotated[int, Field(ge=16, le=262_144)] | None = Field(
        default=None, description="width inside the SwiGLU; None: 8/3 hidden, rounded up to a multiple of 256"
    )
    vocab_size: Annotated[int, Field(ge=2, le=LARGEST_VOCABULARY)] | None = Field(
        default=None, description="None: as many as the tokenizer has"
    )
    tied_head: bool = Field(default=False, description="the output head shares the embedding's weight")
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = Field(default=False, description="queries, keys and values have biases, as in Qwen2")
    qk_norm: bool = Field(default=False, description="each head of queries and keys is normalised, as in Qwen3")

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.qkv_bias and self.qk_norm:
            raise ValueError("qkv_bias and qk_norm together belong to no family of models")
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.head_width % 2:
            raise ValueError(f"head width {self.head_width} is odd, but rotary embeddings need pairs")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.key_value_heads}")
        return self

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        """Width inside the SwiGLU."""
        if self.mlp_hidden:
            return self.mlp_hidden
        exact = 8 * self.hidden / 3
        return 256 * -(-int(exact + 0.5) // 256)

    @property
    def block_parameters(self) -> int:
        """Parameters of all blocks and the final norm: the 'non-embedding' count N of the scaling law."""
        attention = 2 * self.hidden * self.head_width * (self.heads + self.key_value_heads)
        block = attention + 3 * self.hidden * self.mlp_width + 2 * self.hidden
        block += self.qkv_bias * self.head_width * (self.heads + 2 * self.key_value_heads)
        block += self.qk_norm * 2 * self.head_width
        return self.layers * block + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, embedding and head included. Needs `vocab_size`."""
        if self.vocab_size is None:
            raise ConfigError("the number of parameters needs model.vocab_size, which is not set yet")
        return self.block_parameters + self.vocab_size * self.hidden * (1 if self.tied_head else 2)
