"""The artifact's weights as plain matrices, for programs that do not handle codes."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.matrices import matrix_tensors, narrow_operand, weight_operand
from questlm.artifact.read import Artifact
from questlm.artifact.shapes import biased_matrices, matrix_shapes, norm_widths

__all__ = ["dense_state_dict", "dense_weight"]


def dense_state_dict(artifact: Artifact) -> dict[str, Tensor]:
    """Return the weights of a plain `questlm.models.Llama`, all float32; quantised ones as W = IHT(w_q).

    A tied head is listed too, as the same tensor as the embedding.
    """
    config = artifact.config
    weights = {f"{name}.weight": dense_weight(artifact, name) for name in matrix_shapes(config.model)}
    weights |= {f"{name}.weight": artifact.tensors[f"{name}.weight"] for name in norm_widths(config.model)}
    weights |= {f"{name}.bias": artifact.tensors[f"{name}.bias"] for name in biased_matrices(config.model)}
    if config.model.tied_head:
        weights["lm_head.weight"] = weights["embed.weight"]
    return weights


def dense_weight(artifact: Artifact, name: str) -> Tensor:
    """Return the matrix `name` of `dense_state_dict`, (out, in) float32."""
    weight_format, shape = artifact.config.weight_format(name), matrix_shapes(artifact.config.model)[name]
    if isinstance(weight_format.weight, str) and weight_format.weight != "bf16-2:4":
        return artifact.stored_weight(name)
    tensors, columns = matrix_tensors(artifact.tensors, name), weight_format.wide_shape(shape)[1]
    weight = ops.hadamard(ops.operand_values(weight_operand(tensors, weight_format, columns)), weight_format.block_size)
    if weight_format.narrow is None:
        return weight
    by_rows = weight_format.narrow.axis == "rows"
    narrow = narrow_operand(tensors, weight_format, columns if by_rows else weight_format.narrow.width)
    return torch.cat((weight, ops.operand_values(narrow)), dim=0 if by_rows else 1)
