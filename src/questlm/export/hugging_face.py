"""Export an artifact as a Hugging Face folder with plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from questlm.artifact.dense import dense_state_dict
from questlm.artifact.format import CONFIG_NAME, TENSORS_NAME, TOKENIZER_NAME
from questlm.artifact.read import Artifact
from questlm.errors import ConfigError
from questlm.files import atomic_folder
from questlm.json_files import write_json
from questlm.models import names

__all__ = ["to_hugging_face"]


def to_hugging_face(artifact: Artifact, out: str | Path) -> None:
    """Write a folder that transformers' `LlamaForCausalLM.from_pretrained` and `AutoTokenizer` read.

    Weights are stored dequantised, in float32, and activations are not quantised by transformers: a model trained with
    `act_bits` below 16 gives other logits there than it does here.

    Raises:
        ConfigError: `out` exists, or the model has norms before its linear layers, which a plain Llama cannot have.
    """
    out = Path(out)
    normed = next(
        (name for name, weight_format in artifact.config.weight_formats() if weight_format.input_norm is not None), None
    )
    if normed is not None:
        raise ConfigError(
            f"{normed} has a norm before it, which LlamaForCausalLM does not; it cannot be exported there"
        )
    if out.exists():
        raise ConfigError(f"{out} exists already; choose a new folder or remove it first")
    weights = names.to_hugging_face(dense_state_dict(artifact))
    if artifact.config.model.tied_head:
        del weights["lm_head.weight"]
    with atomic_folder(out) as folder:
        save_file(weights, folder / TENSORS_NAME, metadata={"format": "pt"})
        write_json(folder / CONFIG_NAME, _config(artifact))
        if artifact.tokenizer_json is not None:
            (folder / TOKENIZER_NAME).write_text(artifact.tokenizer_json, encoding="utf-8", newline="")
            write_json(folder / "tokenizer_config.json", _tokenizer_config(artifact))


def _config(artifact: Artifact) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": artifact.end_of_text,
        **names.hugging_face_config(artifact.config.model),
    }


def _tokenizer_config(artifact: Artifact) -> dict[str, Any]:
    end = artifact.end_of_text
    eos = artifact.tokenizer.id_to_token(end) if artifact.tokenizer and end is not None else None
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "eos_token": eos}
