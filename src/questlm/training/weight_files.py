"""Find each weight of a model in safetensors files, and read it from there.

Names, shapes and types are checked in the files' headers before any memory is taken on their word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from questlm.config import ModelConfig
from questlm.errors import CheckpointError, quoted
from questlm.json_files import read_safetensors_header
from questlm.models import Llama

__all__ = ["HEAD", "WeightPlace", "find_weights", "model_shapes", "read_weight", "require_weights"]

HEAD = "lm_head.weight"
_DTYPES = ("F32", "F16", "BF16")


class WeightPlace(NamedTuple):
    """Where a weight is stored: as the tensor `name` in safetensors files, of which each has the next of its rows."""

    files: tuple[Path, ...]
    name: str


def find_weights(files: list[Path], sharded: bool = False) -> dict[str, WeightPlace]:
    """Where each weight lies, by its name in the files; `sharded`: its rows may lie in several files."""
    places: dict[str, WeightPlace] = {}
    for file in files:
        try:
            read_safetensors_header(file, CheckpointError)
            with safe_open(file, framework="pt") as tensors:
                names = list(tensors.keys())
        except (OSError, SafetensorError) as problem:
            raise _damaged(file, problem) from None
        for name in names:
            earlier = places[name].files if name in places else ()
            if earlier and not sharded:
                raise CheckpointError(f"{file} and {earlier[0].name} both hold {quoted(name)}; one is left over")
            places[name] = WeightPlace((*earlier, file), name)
    return places


def require_weights(places: Mapping[str, WeightPlace], expected: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Refuse weights that are missing, too many, or of another shape or type than the config says."""
    for name in sorted(expected.keys() - places.keys()):
        raise CheckpointError(f"{folder} lacks the weight {name}, by its config; it is not whole")
    for name in sorted(places.keys() - expected.keys() - {HEAD}):
        raise CheckpointError(f"{folder} has the weight {quoted(places[name].name)}, which by its config is not there")
    for name, wanted in expected.items():
        place = places[name]
        headers = [_header(file, place.name) for file in place.files]
        shapes = [shape for _, shape in headers]
        shape = shapes[0] if len(shapes) == 1 else _joined(shapes)
        if shape != wanted:
            raise CheckpointError(f"{place.files[0]}: {place.name} is {shape}, but by the config it must be {wanted}")
        for dtype, _ in headers:
            if dtype not in _DTYPES:
                raise CheckpointError(
                    f"{place.files[0]}: {place.name} is stored as {dtype}; only {', '.join(_DTYPES)} can be trained"
                )


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of shards stacked along the rows; (), which no weight has, where they do not fit together."""
    if () in shapes or len({shape[1:] for shape in shapes}) > 1:
        return ()
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _header(file: Path, name: str) -> tuple[str, tuple[int, ...]]:
    """Type and shape of a tensor."""
    try:
        with safe_open(file, framework="pt") as tensors:
            header = tensors.get_slice(name)
            return header.get_dtype(), tuple(header.get_shape())
    except (OSError, SafetensorError) as problem:
        raise _damaged(file, problem) from None


def model_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a plain Llama, by name."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Llama(model).named_parameters()}


def read_weight(place: WeightPlace) -> Tensor:
    """One weight, float32.

    Raises:
        CheckpointError: a file that cannot be read, or a value that is not finite.
    """
    shards = [_read_shard(file, place.name) for file in place.files]
    weight = shards[0] if len(shards) == 1 else torch.cat(shards)
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"{place.files[0]}: {place.name} holds a value that is not finite; the model is damaged")
    return weight


def _read_shard(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as tensors:
            shard: Tensor = tensors.get_tensor(name).to(torch.float32)
    except (OSError, RuntimeError, SafetensorError) as problem:
        raise _damaged(file, problem) from None
    return shard


def _damaged(file: Path, problem: Exception) -> CheckpointError:
    return CheckpointError(f"{file} is not a usable safetensors file: {' '.join(str(problem).split()):.200}")
