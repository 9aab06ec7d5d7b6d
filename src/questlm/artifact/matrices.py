"""Pack and unpack the tensors of one matrix."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.format import GridConfig, WeightFormat
from questlm.errors import ArtifactError
from questlm.ops import Operand, PackedFormat
from questlm.ops.reference.storage import load_steps
from questlm.ops.unpacking import stored_rows

__all__ = [
    "check_codes",
    "matrix_tensors",
    "narrow_operand",
    "operand_tensors",
    "packed_matrix",
    "packed_narrow",
    "weight_operand",
]


def matrix_tensors(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of the matrix `name` by kind: 'codes', 'step', ..."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensors[key] for key in tensors if key.rpartition(".")[0] == name}


def operand_tensors(operand: Operand) -> dict[str, Tensor]:
    """Return the tensors that store a weight (out, in) of codes, or of sparse bf16 values."""
    if operand.grid is None:
        half, kept = ops.pack_sparse(operand.data, ops.kept_entries(operand.data, 1), 1)
        return {"weight": half.to(torch.bfloat16), "kept": kept}
    rows, levels = operand.data.shape[0], operand.grid.levels
    assert operand.step is not None
    tensors = {"step": operand.step.expand(rows, 1)}
    if operand.offset is not None:
        tensors["offset"] = operand.offset.expand(rows, 1)
    if not operand.grid.group:
        return tensors | {"codes": ops.pack(operand.data, levels)}
    half, kept = ops.pack_sparse(operand.data, operand.data != levels, operand.grid.group)
    return tensors | {"codes": ops.pack(half, levels), "kept": kept}


def packed_matrix(
    tensors: Mapping[str, Tensor], weight_format: WeightFormat, columns: int
) -> tuple[dict[str, Tensor], PackedFormat]:
    """Return tensors and format of a matrix as `ops.prepack` takes them; of two branches, those of the wide one.

    Args:
        tensors: by kind, as `matrix_tensors` returns them.
        weight_format: how they are stored.
        columns: entries of a row of this branch.
    """
    own = {kind: tensor for kind, tensor in tensors.items() if not kind.startswith("narrow_") and kind != "input_norm"}
    if "step" in own:
        own["step"] = load_steps(own["step"], weight_format.steps)
    return own, PackedFormat(columns, weight_format.block_size, *weight_format.grids)


def packed_narrow(
    tensors: Mapping[str, Tensor], weight_format: WeightFormat, columns: int
) -> tuple[dict[str, Tensor], PackedFormat]:
    """Return tensors and format of the narrow branch, as `packed_matrix` does."""
    if weight_format.narrow is None:
        raise ValueError("this layer has no narrow branch")
    own = {kind: tensor for kind, tensor in tensors.items() if kind.startswith("act_")}
    own |= {"codes": tensors["narrow_codes"], "step": tensors["narrow_step"]}
    return own, PackedFormat(columns, 1, weight_format.narrow.weight.grid, weight_format.grids[1])


def weight_operand(tensors: Mapping[str, Tensor], weight_format: WeightFormat, columns: int) -> Operand:
    """Return the weight of a quantised layer in the Hadamard domain, (out, columns); of two branches, the wide one.

    Args:
        tensors: by kind, as `matrix_tensors` returns them.
        weight_format: how they are stored.
        columns: entries of a row of this branch.
    """
    return stored_rows(*packed_matrix(tensors, weight_format, columns))


def narrow_operand(tensors: Mapping[str, Tensor], weight_format: WeightFormat, columns: int) -> Operand:
    """Return the weight of the narrow branch, (out, columns)."""
    return stored_rows(*packed_narrow(tensors, weight_format, columns))


def check_codes(tensors: Mapping[str, Tensor], weight_format: WeightFormat, columns: int) -> None:
    """Refuse codes outside their grid, and sparsity patterns that do not keep 2 of each 4 groups.

    Args:
        tensors: by kind, all that the matrix is stored as or some of them.
        weight_format: how they are stored.
        columns: entries of a row of the wide branch.

    Raises:
        ArtifactError: names the tensor.
    """
    if isinstance(weight_format.weight, GridConfig):
        stored = columns // 2 if weight_format.weight.group else columns
        _require_on_grid(tensors, "codes", weight_format.weight.levels, stored)
    if weight_format.narrow is not None:
        width = columns if weight_format.narrow.axis == "rows" else weight_format.narrow.width
        _require_on_grid(tensors, "narrow_codes", weight_format.narrow.weight.levels, width)
    group = (
        weight_format.weight.group
        if isinstance(weight_format.weight, GridConfig)
        else int(weight_format.weight == "bf16-2:4")
    )
    if group and "kept" in tensors:
        _require_on_grid(tensors, "kept", 2, columns // group)
        fours = ops.unpack(tensors["kept"], 2, columns // group).unflatten(-1, (-1, 4))
        if not bool((fours.sum(-1) == 2).all()):
            raise ArtifactError("kept does not keep 2 of each 4 entries")


def _require_on_grid(tensors: Mapping[str, Tensor], kind: str, levels: int, length: int) -> None:
    """Refuse anything but packed rows of `length` codes below `levels`."""
    if kind in tensors and not _on_grid(tensors[kind], levels, length):
        raise ArtifactError(f"{kind} holds a code that is not on its grid")


def _on_grid(packed: Tensor, levels: int, length: int) -> bool:
    last = packed[:, -1]
    if levels == 3:
        digits_of_last = length % 5 or 5
        return bool((packed < 3**5).all() and (last < 3**digits_of_last).all())
    bits = (levels - 1).bit_length()
    spare_from = length * bits % 8 or 8
    if spare_from != 8 and bool((last >> spare_from).any()):
        return False
    return levels == 2**bits or bool((ops.unpack(packed, levels, length) < levels).all())
