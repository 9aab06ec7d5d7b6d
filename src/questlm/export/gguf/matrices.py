"""How each matrix of a packed model is stored in a GGUF file, and what llama.cpp makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from questlm.artifact.dense import dense_weight
from questlm.artifact.read import Artifact
from questlm.artifact.shapes import matrix_shapes
from questlm.export.gguf.blocks import BLOCK_TYPES, fitting_type
from questlm.export.integers import IntegerRows, integer_rows

__all__ = ["StoredMatrix", "stored_matrix"]

_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix (out, in) as a type of GGUF holds it.

    Attributes:
        kind: name of the type.
        content: integers, of a type made of blocks; values in float32, of a type made of floats.
        loses: what is rounded to float16; None: nothing, the numbers are those of the packed model.
    """

    kind: str
    content: IntegerRows | Tensor
    loses: Literal["steps", "weights"] | None

    @property
    def values(self) -> Tensor:
        """What llama.cpp reads, (out, in) float32."""
        if isinstance(self.content, IntegerRows):
            return self.content.values * _rounded(self.content.step, torch.float16)
        return _rounded(self.content, _FLOATS[self.kind])

    def data(self, order: Tensor | None = None) -> NDArray[Any]:
        """The rows as they are written: bytes (out, bytes of a row), or float16 (out, in).

        Args:
            order: the rows to write, in this order; None: as they are.
        """
        if isinstance(self.content, IntegerRows):
            rows = self.content
            if order is not None:
                rows = rows._replace(values=rows.values[order], step=rows.step[order])
            return BLOCK_TYPES[self.kind].blocks(rows)
        values = (self.content if order is None else self.content[order]).to(_FLOATS[self.kind])
        data: NDArray[Any] = values.numpy() if self.kind == "F16" else values.view(torch.uint8).numpy()
        return data


def stored_matrix(artifact: Artifact, name: str) -> StoredMatrix:
    """The matrix `name` in the smallest type that holds its grid; in F16 or BF16 where none does, or it is rotated."""
    rotated = artifact.config.weight_format(name).block_size > 1
    rows = None if rotated else integer_rows(artifact, name)
    kind = None if rows is None else fitting_type(rows, matrix_shapes(artifact.config.model)[name][1])
    if rows is not None and kind is not None:
        exact = torch.equal(_rounded(rows.step, torch.float16), rows.step)
        return StoredMatrix(kind, rows, None if exact else "steps")
    weight = dense_weight(artifact, name)
    for floats, dtype in _FLOATS.items():
        if torch.equal(_rounded(weight, dtype), weight):
            return StoredMatrix(floats, weight, None)
    return StoredMatrix("F16", weight, "weights")


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).to(torch.float32)
