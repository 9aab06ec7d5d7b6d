"""What an artifact says for the transformers library, so that it opens the folder as it is. No torch.

All of it follows from the rest of config.json. A reader of artifacts does not need it, and refuses a folder in which it
says something else.
"""

from __future__ import annotations

from typing import Any

from questlm.config import ModelConfig
from questlm.config.hugging_face import hugging_face_config, hugging_face_family

__all__ = ["KEYS", "TOKENIZER_CONFIG_NAME", "model_settings", "tokenizer_settings"]

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """The keys that transformers reads in the config.json of a model of this shape."""
    family = hugging_face_family(model)
    about = {"architectures": [_CLASSES[family]], "model_type": family, "dtype": "float32", "bos_token_id": None}
    return about | hugging_face_config(model)


_OF_EACH = [
    model_settings(ModelConfig(vocab_size=2, qkv_bias=family == "qwen2", qk_norm=family == "qwen3"))
    for family in _CLASSES
]
KEYS = frozenset({key for settings in _OF_EACH for key in settings} | {"rope_scaling", "max_position_embeddings"})
"""All keys of `model_settings`, whatever the model."""


def tokenizer_settings(end_of_text: str | None) -> dict[str, Any]:
    """The content of tokenizer_config.json; `end_of_text` is the token that ends a document."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": end_of_text,
    }
