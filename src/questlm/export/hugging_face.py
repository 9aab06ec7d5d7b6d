"""The format `hf`: a Hugging Face folder with plain weights, which transformers loads without questlm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from questlm.artifact.dense import dense_state_dict
from questlm.artifact.for_transformers import TOKENIZER_CONFIG_NAME, model_settings, tokenizer_settings
from questlm.artifact.format import CONFIG_NAME, TENSORS_NAME, TOKENIZER_NAME
from questlm.artifact.read import Artifact
from questlm.errors import ConfigError
from questlm.export.formats import ExportFormat
from questlm.files import atomic_folder
from questlm.json_files import write_json
from questlm.models import Llama, names
from questlm.tokenizer_files import CHAT_TEMPLATE_NAME

__all__ = ["FORMAT", "difference", "plain_logits", "to_hugging_face"]


def difference(artifact: Artifact) -> str | None:
    """What a plain Llama with the dequantised weights computes otherwise; None: nothing.

    Raises:
        ConfigError: the model has norms before its linear layers, which a plain Llama cannot have.
    """
    formats = list(artifact.config.weight_formats())
    if (normed := next((name for name, each in formats if each.input_norm is not None), None)) is not None:
        raise ConfigError(
            f"{normed} has a norm before it, which LlamaForCausalLM does not; it cannot be exported there"
        )
    rounding = sum(each.act is not None for _, each in formats)
    if not rounding:
        return None
    return f"transformers does not round the inputs of {rounding} layers, as this model was trained to have them"


def plain_logits(artifact: Artifact) -> Callable[[Tensor], Tensor]:
    """The logits of a plain Llama with the dequantised weights, in float32."""
    model = Llama(artifact.config.model)
    model.load_state_dict(dense_state_dict(artifact))
    model.requires_grad_(False)
    return model


def to_hugging_face(artifact: Artifact, out: str | Path) -> None:
    """Write a folder that transformers' `LlamaForCausalLM.from_pretrained` and `AutoTokenizer` read.

    Weights are stored dequantised, in float32, and activations are not quantised by transformers: a model trained with
    `act_bits` below 16 gives other logits there than it does here.

    Raises:
        ConfigError: `out` exists, or the model has norms before its linear layers, which a plain Llama cannot have.
    """
    out = Path(out)
    difference(artifact)
    if out.exists():
        raise ConfigError(f"{out} exists already; choose a new folder or remove it first")
    weights = names.to_hugging_face(dense_state_dict(artifact))
    if artifact.config.model.tied_head:
        del weights["lm_head.weight"]
    with atomic_folder(out) as folder:
        save_file(weights, folder / TENSORS_NAME, metadata={"format": "pt"})
        settings = model_settings(artifact.config.model) | {"eos_token_id": artifact.end_of_text}
        write_json(folder / CONFIG_NAME, settings)
        if artifact.tokenizer is not None and artifact.tokenizer_json is not None:
            (folder / TOKENIZER_NAME).write_text(artifact.tokenizer_json, encoding="utf-8", newline="")
            end = artifact.end_of_text
            token = None if end is None else artifact.tokenizer.id_to_token(end)
            write_json(folder / TOKENIZER_CONFIG_NAME, tokenizer_settings(token))
            if artifact.chat_template is not None:
                (folder / CHAT_TEMPLATE_NAME).write_text(artifact.chat_template, encoding="utf-8", newline="")


FORMAT = ExportFormat(
    difference,
    plain_logits,
    to_hugging_face,
    "transformers.AutoModelForCausalLM.from_pretrained({out!r})",
)
