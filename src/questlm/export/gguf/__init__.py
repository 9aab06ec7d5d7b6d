"""The format `gguf`: one file for llama.cpp and what is built on it.

Weights that are not rotated are stored in the smallest type of GGUF that holds their grid exactly, up to the steps of
their rows, which are float16 there (`blocks`). llama.cpp does not rotate inputs, so weights that are rotated are
stored rotated back, in F16. The package gguf writes the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from questlm.artifact.read import Artifact
from questlm.artifact.shapes import biased_matrices, matrix_shapes, norm_widths
from questlm.errors import ConfigError, MissingDependencyError
from questlm.export.formats import ExportFormat
from questlm.export.gguf.layout import BLOCK_NAMES, OUTER_NAMES, add_shape, architecture
from questlm.export.gguf.matrices import stored_matrix
from questlm.export.gguf.tokenizer import gguf_vocabulary
from questlm.export.plain import plain_logits, require_plain, unrounded_inputs
from questlm.files import atomic_file
from questlm.models.llama import rotary_frequencies
from questlm.progress import tell

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["FORMAT", "to_gguf"]

_LOSSES = {
    "steps": "steps of {} matrices are rounded to float16 (train with quant.steps=fp16, which keeps them)",
    "weights": "weights of {} matrices, which are rotated or have no type there, are rounded to float16",
}
_USUAL_CONTEXT = 2048


def _difference(artifact: Artifact) -> str | None:
    require_plain(artifact, "llama.cpp")
    losses: Counter[str | None] = Counter(
        stored_matrix(artifact, name).loses for name in matrix_shapes(artifact.config.model)
    )
    clauses = [unrounded_inputs(artifact, "llama.cpp")]
    clauses += [words.format(losses[kind]) for kind, words in _LOSSES.items() if losses[kind]]
    return "; ".join(clause for clause in clauses if clause is not None) or None


def _logits(artifact: Artifact) -> Callable[[Tensor], Tensor]:
    model = artifact.config.model
    weights = {f"{name}.weight": stored_matrix(artifact, name).values for name in matrix_shapes(model)}
    weights |= {name: artifact.tensors[name] for name in _vectors(artifact)}
    if model.tied_head:
        weights["lm_head.weight"] = weights["embed.weight"]
    return plain_logits(artifact, weights)


def _vectors(artifact: Artifact) -> list[str]:
    model = artifact.config.model
    return [
        *(f"{name}.weight" for name in norm_widths(model)),
        *(f"{name}.bias" for name in biased_matrices(model)),
    ]


def to_gguf(artifact: Artifact, out: Path) -> None:
    """Write the new file `out`, which llama.cpp reads.

    Raises:
        ConfigError: `out` exists, or the model has norms before its linear layers.
        MissingDependencyError: the package gguf is not installed.
    """
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise MissingDependencyError("gguf", "gguf", "an export to GGUF") from None
    require_plain(artifact, "llama.cpp")
    if out.exists():
        raise ConfigError(f"{out} exists already; choose a new name or remove it first")
    model, training = artifact.config.model, artifact.config.training
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        writer = GGUFWriter(file.name, architecture(model))
        length = training.get("seq_len")
        add_shape(writer, model, length if isinstance(length, int) and length > 0 else _USUAL_CONTEXT)
        _add_tokenizer(writer, artifact)
        _add_rope_scaling(writer, artifact)
        for name in _vectors(artifact):
            writer.add_tensor(_gguf_name(name), artifact.tensors[name].numpy())
        for name, order in _row_orders(artifact):
            _add_matrix(writer, artifact, name, order)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_matrix(writer: GGUFWriter, artifact: Artifact, name: str, order: Tensor | None) -> None:
    from gguf import GGMLQuantizationType

    stored = stored_matrix(artifact, name)
    writer.add_tensor(_gguf_name(f"{name}.weight"), stored.data(order), raw_dtype=GGMLQuantizationType[stored.kind])


def _gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in OUTER_NAMES:
        return f"{OUTER_NAMES[module]}.{kind}"
    _, index, own = module.split(".", 2)
    return f"blk.{index}.{BLOCK_NAMES[own]}.{kind}"


def _row_orders(artifact: Artifact) -> Iterator[tuple[str, Tensor | None]]:
    """Each matrix, and the order of its rows there.

    The architecture `llama` rotates neighbouring entries of a head, where we and all other architectures rotate entry i
    with entry i + width / 2, so the rows of queries and keys are sorted accordingly.
    """
    model = artifact.config.model
    for name, (rows, _) in matrix_shapes(model).items():
        if architecture(model) == "llama" and name.endswith(("attention.q", "attention.k")):
            yield name, torch.arange(rows).view(-1, 2, model.head_width // 2).transpose(1, 2).flatten()
        else:
            yield name, None


def _add_rope_scaling(writer: GGUFWriter, artifact: Artifact) -> None:
    model = artifact.config.model
    if (scaling := model.rope_scaling) is None:
        return
    if scaling.kind == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
        return
    place = torch.device("cpu")
    plain = rotary_frequencies(model.model_copy(update={"rope_scaling": None}), place)
    writer.add_tensor("rope_freqs.weight", (plain / rotary_frequencies(model, place)).numpy())


def _add_tokenizer(writer: GGUFWriter, artifact: Artifact) -> None:
    """Add tokens and how text is split into them; nothing where there is no tokenizer or it cannot be carried over."""
    reason, end = "the model has none", artifact.end_of_text
    if artifact.tokenizer_json is not None:
        found = gguf_vocabulary(artifact.tokenizer_json, artifact.config.model.vocab_size or 0)
        if not isinstance(found, str) and end is not None:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(found.pre)
            writer.add_token_list(found.tokens)
            writer.add_token_types(found.types)
            writer.add_token_merges(found.merges)
            writer.add_bos_token_id(end)
            writer.add_eos_token_id(end)
            writer.add_add_bos_token(False)
            if artifact.chat_template is not None:
                writer.add_chat_template(artifact.chat_template)
            return
        reason = found if isinstance(found, str) else "no token of it ends a document"
    tell(f"the file is without a tokenizer, for ids alone: {reason}")
    writer.add_tokenizer_model("none")


FORMAT = ExportFormat(_difference, _logits, to_gguf, "llama-cli --model {out} --prompt 'Once upon a time'")
