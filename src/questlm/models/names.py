"""Rename weights between our Llama and Hugging Face's Llama, Qwen2 and Qwen3: shapes are equal, only names differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from questlm.errors import ConfigError, quoted

__all__ = ["from_hugging_face", "module_to_hugging_face", "to_hugging_face"]

T = TypeVar("T")

_OURS_TO_THEIRS = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "lm_head": "lm_head",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_THEIRS_TO_OURS = {theirs: ours for ours, theirs in _OURS_TO_THEIRS.items()}
_BIASED = {name for part in "qkv" for name in (f"attention.{part}", f"self_attn.{part}_proj")}
_TO_THEIRS = (r"layers\.(\d+)\.", "model.layers.{}.", _OURS_TO_THEIRS)


def to_hugging_face(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict to Hugging Face's. A tied head keeps both of its names."""
    return {_rename(name, *_TO_THEIRS): t for name, t in weights.items()}


def module_to_hugging_face(name: str) -> str:
    """The name of one of our modules ('layers.0.attention.q') in `LlamaForCausalLM`."""
    return _rename(f"{name}.weight", *_TO_THEIRS).removesuffix(".weight")


def from_hugging_face(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename Hugging Face's state dict to ours.

    A tied checkpoint without `lm_head.weight` gets it from the embedding. The values are not examined.

    Raises:
        ConfigError: a weight that a plain Llama does not have (a bias, an adapter).
    """
    pattern = r"model\.layers\.(\d+)\."
    # Old checkpoints store the rotary frequencies, which follow from the config.
    kept = {name: t for name, t in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    renamed = {_rename(name, pattern, "layers.{}.", _THEIRS_TO_OURS): t for name, t in kept.items()}
    if "lm_head.weight" not in renamed and "embed.weight" in renamed:
        renamed["lm_head.weight"] = renamed["embed.weight"]
    return renamed


def _rename(name: str, layer_pattern: str, layer_prefix: str, table: Mapping[str, str]) -> str:
    match = re.match(layer_pattern, name)
    rest = name[match.end() :] if match else name
    module, _, kind = rest.rpartition(".")
    if module not in table or not (kind == "weight" or (kind == "bias" and module in _BIASED)):
        raise ConfigError(
            f"the weight {quoted(name)} has no place in a Llama, Qwen2 or Qwen3 (adapters are not supported)"
        )
    return f"{layer_prefix.format(match.group(1)) if match else ''}{table[module]}.{kind}"
