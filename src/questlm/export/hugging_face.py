"""The format `hf`: a Hugging Face folder with plain weights, which transformers loads without questlm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from questlm.artifact.dense import dense_state_dict
from questlm.artifact.for_transformers import TOKENIZER_CONFIG_NAME, model_settings, tokenizer_settings
from questlm.artifact.format import CONFIG_NAME, TENSORS_NAME, TOKENIZER_NAME
from questlm.artifact.read import Artifact
from questlm.errors import ConfigError
from questlm.export.formats import ExportFormat
from questlm.export.plain import plain_logits, require_plain, unrounded_inputs
from questlm.files import atomic_folder
from questlm.json_files import write_json
from questlm.models import names
from questlm.tokenizer_files import CHAT_TEMPLATE_NAME

__all__ = ["FORMAT", "to_hugging_face", "write_folder"]


def _difference(artifact: Artifact) -> str | None:
    require_plain(artifact, "transformers")
    return unrounded_inputs(artifact, "transformers")


def _logits(artifact: Artifact) -> Callable[[Tensor], Tensor]:
    return plain_logits(artifact, dense_state_dict(artifact))


def to_hugging_face(artifact: Artifact, out: str | Path) -> None:
    """Write a folder that transformers' `LlamaForCausalLM.from_pretrained` and `AutoTokenizer` read.

    Weights are stored dequantised, in float32, and activations are not quantised by transformers: a model trained with
    `act_bits` below 16 gives other logits there than it does here.

    Raises:
        ConfigError: `out` exists, or the model has norms before its linear layers, which a plain Llama cannot have.
    """
    require_plain(artifact, "transformers")
    weights = names.to_hugging_face(dense_state_dict(artifact))
    if artifact.config.model.tied_head:
        del weights["lm_head.weight"]
    write_folder(artifact, Path(out), weights)


def write_folder(
    artifact: Artifact,
    out: Path,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None = None,
    readme: str | None = None,
) -> None:
    """Write a new Hugging Face folder: these weights, config.json, and the tokenizer.

    Args:
        weights: by the names that they have there.
        settings: of config.json, beside those that follow from the shape.
        readme: content of README.md; None: there is none.

    Raises:
        ConfigError: `out` exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose a new folder or remove it first")
    shape = model_settings(artifact.config.model) | {"eos_token_id": artifact.end_of_text}
    with atomic_folder(out) as folder:
        save_file(dict(weights), folder / TENSORS_NAME, metadata={"format": "pt"})
        write_json(folder / CONFIG_NAME, shape | dict(settings or {}))
        if readme is not None:
            (folder / "README.md").write_text(readme, encoding="utf-8")
        if artifact.tokenizer is not None and artifact.tokenizer_json is not None:
            (folder / TOKENIZER_NAME).write_text(artifact.tokenizer_json, encoding="utf-8", newline="")
            end = artifact.end_of_text
            token = None if end is None else artifact.tokenizer.id_to_token(end)
            write_json(folder / TOKENIZER_CONFIG_NAME, tokenizer_settings(token))
            if artifact.chat_template is not None:
                (folder / CHAT_TEMPLATE_NAME).write_text(artifact.chat_template, encoding="utf-8", newline="")


FORMAT = ExportFormat(
    _difference,
    _logits,
    to_hugging_face,
    "transformers.AutoModelForCausalLM.from_pretrained({out!r})",
)
