"""The shape of a model as Hugging Face's `config.json` describes it, and back. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from questlm.config.model import ModelConfig, RopeScaling
from questlm.errors import ConfigError, quoted

__all__ = ["hugging_face_config", "hugging_face_family", "model_config_from_hugging_face"]

_SHAPE = {  # settings that every config.json has
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "mlp_hidden": "intermediate_size",
    "vocab_size": "vocab_size",
}
_DETAILS = {
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "tied_head": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}
_BOTH_DEFAULT = {"head_dim": None, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
_DEFAULTS: dict[str, dict[str, Any]] = {  # defaults of transformers, for settings that a config.json leaves out
    "llama": {**_BOTH_DEFAULT, "num_key_value_heads": None, "max_position_embeddings": 2048},
    "mistral": {**_BOTH_DEFAULT, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": {**_BOTH_DEFAULT, "num_key_value_heads": 32, "max_position_embeddings": 32_768},
    "qwen3": {**_BOTH_DEFAULT, "num_key_value_heads": 32, "max_position_embeddings": 32_768, "head_dim": 128},
}
_GEMMA = "its embedding is scaled, its norms multiply by 1 + gain, and its MLP has GELU"
_MISSING = {  # what other families compute that we do not
    "gemma": _GEMMA,
    "gemma2": f"{_GEMMA}; logits and scores are capped, and norms stand behind its sublayers, too",
    "gemma3": f"{_GEMMA}; norms stand behind its sublayers, too, and most layers have a sliding window",
    "gemma3_text": f"{_GEMMA}; norms stand behind its sublayers, too, and most layers have a sliding window",
}
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "max_position_embeddings",
)
_SWITCHED_OFF = {
    "llama": ("attention_bias", "mlp_bias"),
    "qwen2": ("use_sliding_window",),
    "qwen3": ("attention_bias", "use_sliding_window"),
}
_PLAIN: dict[str, tuple[Any, ...]] = {  # values of a plain Llama; any other value means another computation
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1),
    "quantization_config": (None,),
}


def hugging_face_family(config: ModelConfig) -> str:
    """The `model_type` of transformers that computes the same: 'llama', 'qwen2' or 'qwen3'."""
    return "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of transformers' `LlamaConfig`, `Qwen2Config` or `Qwen3Config` that describe the model."""
    family = hugging_face_family(config)
    shape: dict[str, Any] = {
        "hidden_size": config.hidden,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
    }
    shape |= dict.fromkeys(_SWITCHED_OFF[family], False)
    return shape if config.rope_scaling is None else shape | _rope_settings(config.rope_scaling)


def model_config_from_hugging_face(config: Mapping[str, Any]) -> ModelConfig:
    """Return the model shape that the content of a Hugging Face `config.json`, old or new, describes.

    Raises:
        ConfigError: not a plain Llama, a Mistral that is one, a Qwen2 or a Qwen3: another architecture, other biases, a
            sliding window, quantised weights, an unsupported scaling of rotary positions; or a setting that no model
            can have.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        missing = f" ({_MISSING[kind]})" if isinstance(kind, str) and kind in _MISSING else ""
        raise ConfigError(
            f"model_type {quoted(kind)} is not supported{missing}; it must be one of {', '.join(_DEFAULTS)}"
        )
    values = _DEFAULTS[kind] | dict(config)
    if kind.startswith("qwen") and not values.get("use_sliding_window"):
        values["sliding_window"] = None  # config.json names one that is not used
    for name, allowed in _PLAIN.items():
        if values.get(name, allowed[0]) not in allowed:
            words = " or ".join(map(str, allowed))
            raise ConfigError(f"{name} = {quoted(values[name])} is not supported; in a plain Llama it is {words}")
    for name in _SHAPE.values():
        if name not in values:
            raise ConfigError(f"{name} is missing")
    tied = values["tie_word_embeddings"]
    if not isinstance(tied, bool):
        raise ConfigError(f"tie_word_embeddings = {quoted(tied)} cannot be used: true or false is expected")
    for name in (*_SHAPE.values(), *_DETAILS.values()):
        if name != "tie_word_embeddings":
            _require_number(name, values[name])
    theta, scaling = _rope(values)
    shape = {ours: values[theirs] for ours, theirs in (_SHAPE | _DETAILS).items()}
    added = {"qkv_bias": kind == "qwen2", "qk_norm": kind == "qwen3"}
    return ModelConfig(**shape, rope_theta=theta, rope_scaling=scaling, **added)


def _rope(values: Mapping[str, Any]) -> tuple[Any, RopeScaling | None]:
    # Until its version 5, transformers had rope_theta beside rope_scaling; since then both are in rope_parameters.
    name = "rope_parameters" if values.get("rope_scaling") in (None, {}) else "rope_scaling"
    rope = values.get(name)
    rope = {} if rope is None else rope
    if not isinstance(rope, Mapping):
        raise ConfigError(f"{name} = {quoted(rope)} cannot be used; a table of settings is expected")
    for key in _ROPE_NUMBERS:
        _require_number(f"{name}.{key}", rope.get(key))
        _require_number(key, values.get(key))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ConfigError(f"rope_scaling of type {quoted(kind)} is not supported; it must be default, linear or llama3")
    if rope.get("partial_rotary_factor") not in _PLAIN["partial_rotary_factor"]:
        raise ConfigError("partial_rotary_factor is not supported; in a plain Llama it is 1")
    theta = rope.get("rope_theta", values["rope_theta"])
    if kind == "default":
        if rope.get("factor") is not None:
            raise ConfigError(f"{name} has a factor but no rope_type that uses it; it must be linear or llama3")
        return theta, None
    scaling: dict[str, Any] = {"kind": kind, "factor": rope.get("factor")}
    if kind == "llama3":
        length = rope.get("original_max_position_embeddings", values["max_position_embeddings"])
        scaling["original_max_position"] = values.get("original_max_position_embeddings", length)
        scaling |= {name: rope.get(name) for name in ("low_freq_factor", "high_freq_factor")}
    return theta, RopeScaling(**scaling)


def _require_number(name: str, value: Any) -> None:
    """Refuse anything but a number or None, such as "16", which transformers does not read as 16 either."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ConfigError(f"{name} = {quoted(value)} cannot be used: a number is expected")


def _rope_settings(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.kind == "linear" or scaling.original_max_position is None:
        return {"rope_scaling": {"rope_type": "linear", "factor": scaling.factor}}
    return {
        "max_position_embeddings": round(scaling.factor * scaling.original_max_position),
        "rope_scaling": {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        },
    }
