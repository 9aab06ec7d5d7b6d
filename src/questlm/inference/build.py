"""A Llama that runs from the tensors of an artifact."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from questlm import ops
from questlm.artifact.format import ArtifactConfig
from questlm.artifact.matrices import matrix_tensors, packed_matrix
from questlm.artifact.read import Artifact
from questlm.artifact.shapes import matrix_shapes, norm_widths
from questlm.artifact.tensors import meta_tensors
from questlm.inference.linear import PackedEmbedding, PackedLinear, packed_layer
from questlm.memory import host_memory, require_memory
from questlm.models import Llama

__all__ = ["build_model", "packed_layers", "resident_bytes"]


def build_model(artifact: Artifact, device: torch.device, dtype: torch.dtype, stay_packed: bool) -> Llama:
    """A Llama on `device` with the artifact's weights, for inference.

    Embedding and norms give float32, as in training; the embedding stays as it is stored. Each matrix is laid out for
    products in `dtype` by `ops.prepack`; one that is not quantised is multiplied as values of `dtype`, to which
    autocast would convert it each time. Each matrix is looked up in `artifact.tensors` once, and only one is kept as it
    is stored at a time.

    Args:
        stay_packed: keep weights packed even where products of unpacked ones are faster.

    Raises:
        ConfigError: unpacked weights need more memory than this machine has free.
    """
    if not stay_packed and device.type == "cpu" and (needed := _unpacked_bytes(artifact.config, device, dtype)):
        hint = "load it with weights='packed' (quest generate --weights packed)"
        require_memory(needed, host_memory(), "the model with unpacked weights", hint)
    with torch.device("meta"):
        model = Llama(artifact.config.model)
    for name in norm_widths(artifact.config.model):
        weight = artifact.tensors[f"{name}.weight"].to(device)
        model.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    for name, layer in packed_layers(artifact, device, dtype, stay_packed):
        model.set_submodule(name, layer)
    return model.to(device).eval()


def packed_layers(
    artifact: Artifact, device: torch.device, dtype: torch.dtype, stay_packed: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Each matrix as a layer that runs on `device`, by its name in our Llama: the embedding first, a tied head too.

    Each is laid out when it is asked for.
    """
    config, prepack = artifact.config.model, partial(ops.prepack, device=device, dtype=dtype, stay_packed=stay_packed)
    shapes, formats = matrix_shapes(config), dict(artifact.config.weight_formats())
    embedding = {kind: tensor.to(device) for kind, tensor in matrix_tensors(artifact.tensors, "embed").items()}
    yield "embed", PackedEmbedding(embedding, formats["embed"], config.hidden)
    for name in (name for name in formats if name != "embed"):
        yield name, packed_layer(matrix_tensors(artifact.tensors, name), shapes[name][1], formats[name], prepack)
    if config.tied_head:
        yield "lm_head", packed_layer(embedding, config.hidden, formats["embed"], prepack)


def _unpacked_bytes(config: ArtifactConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of all matrices that `ops.prepack` would unpack."""
    total = 0
    for name, (rows, columns) in matrix_shapes(config.model).items():
        if name != "embed" or config.model.tied_head:  # else only its rows are looked up
            weight_format = config.weight_format(name)
            case = packed_matrix(meta_tensors((rows, columns), weight_format), weight_format, columns)
            if ops.choose("packed_linear", *case, device, dtype, False) == "unpacked":
                total += rows * columns * dtype.itemsize
    return total


def resident_bytes(model: nn.Module) -> int:
    """Bytes of memory that the weights of a packed model take, each counted once."""
    packed = [tensor for layer in model.modules() if isinstance(layer, PackedLinear) for tensor in layer.weight.tensors]
    tensors = {tensor.data_ptr(): tensor for tensor in (*packed, *model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
