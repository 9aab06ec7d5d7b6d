"""Linear layers of packed weights: the seam between what an artifact stores and the kernel that multiplies it.

`prepack` takes the stored tensors of a matrix and lays them out, once, for the implementation that will run them.
`packed_linear` is then the whole layer in one call: it rotates the input, takes its scale, rounds it to codes (or
leaves it in 16 or 32 bits), multiplies, applies steps and offsets, and adds the bias.

An implementation is a subclass of `PackedWeight` in a file of its own and a line in the table of
`questlm.ops.dispatch`. It keeps this contract, which the tests hold against the layer that trains:

- The codes of the input are those of `ops.quantize`, all of them.
- The product is that of `ops.scaled_matmul` on these codes. Sums of products of whole or half levels are exact: in
  int32 always, for rows of up to 11,008 codes of 8 bits and far beyond; in float32 as `ops.reference.matmul` says.
  Products of floats may differ by the order of their sums.
- `tensors` lists everything it keeps, which is what `nbytes` counts; while it runs it takes no more than a few MiB
  beside its input and output. On a GPU, products of many rows take one or two bytes an entry of the weight, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from questlm.grid import Grid
from questlm.ops.dispatch import select
from questlm.ops.precision import without_autocast

if TYPE_CHECKING:
    from questlm.ops.cpu.llama import NativeLinear

__all__ = ["PackedFormat", "PackedWeight", "packed_linear", "prepack"]

_KINDS = frozenset({"codes", "step", "offset", "kept", "weight", "scale", "act_step", "act_offset", "bias"})
_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class PackedFormat:
    """How a packed matrix is stored and multiplied; the tensors beside it say the rest.

    Attributes:
        in_features: K, the length of a row.
        block_size: of the Hadamard transform of input and weight; 1: none.
        weight: grid of the weight; None: its values are stored.
        act: grid of the input; None: it is not rounded.
    """

    in_features: int
    block_size: int
    weight: Grid | None
    act: Grid | None


class PackedWeight(ABC):
    """A matrix (out_features, in_features), laid out for one implementation of `packed_linear`.

    Attributes:
        format: how it was stored.
        out_features: its rows.
        dtype: what products are computed in, and the dtype of the output.
    """

    format: PackedFormat
    out_features: int
    dtype: torch.dtype

    @classmethod
    @abstractmethod
    def can_run(
        cls,
        tensors: Mapping[str, Tensor],
        format: PackedFormat,
        device: torch.device,
        dtype: torch.dtype,
        stay_packed: bool,
    ) -> str | None:
        """None, or the reason why it cannot run such a matrix. The arguments are those of `prepack`."""

    @abstractmethod
    def __init__(
        self, tensors: Mapping[str, Tensor], format: PackedFormat, device: torch.device, dtype: torch.dtype
    ) -> None: ...

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: it never changes, and a native layout is full of addresses."""
        return self

    def native_linear(self) -> NativeLinear | str:
        """This weight as a layer of the native forward pass, or the reason why it is none."""
        return "its weight is not laid out for native kernels"

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """All tensors that it keeps in memory."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it keeps."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @abstractmethod
    def linear(self, rows: Tensor) -> Tensor:
        """Multiply x (tokens, in_features) by the weight: (tokens, out_features) of `dtype`; the whole layer."""


def prepack(
    tensors: Mapping[str, Tensor],
    format: PackedFormat,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    stay_packed: bool = False,
) -> PackedWeight:
    """Lay a packed matrix out for the fastest implementation that can run it on `device`.

    Args:
        tensors: by kind. The matrix as one of
            codes: uint8 (out, packed_width(K, levels)), step: float32 (out, 1), with a grid; offset: float32 (out, 1),
                added to each entry of a row, or absent; of a 2:4 sparse grid codes hold the kept half of a row, and
                kept: uint8 (out, packed_width(K / group, 2)), a bit for each group;
            weight: float32 or bfloat16 (out, K), not rotated; or bfloat16 (out, K / 2) with kept, rotated;
            codes: int8 (out, K) and scale: float32 (out, 1).
            For an input grid whose step is learned act_step: float32 (1, 1), and act_offset: (1, 1) or absent.
            bias: (out,), or absent.
        dtype: what products are computed in, float32 or bfloat16; also what the input is rounded to before it is
            rotated, unless its step is learned, as training under autocast does.
        stay_packed: refuse implementations that keep the weight unpacked.

    Raises:
        ValueError: tensors of another kind, or another dtype.
        BackendError: the requested backend cannot run it.
    """
    if unknown := sorted(tensors.keys() - _KINDS):
        raise ValueError(f"a packed matrix has no {unknown[0]!r}; it may have: {', '.join(sorted(_KINDS))}")
    if dtype not in _DTYPES:
        raise ValueError(f"packed layers compute in float32 or bfloat16, not in {dtype}")
    chosen = select("packed_linear", tensors, format, device, dtype, stay_packed)
    module, _, name = chosen.where.partition(":")
    weight: PackedWeight = getattr(import_module(module), name)(tensors, format, device, dtype)
    return weight


def packed_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """The output of a linear layer with this weight: (..., in_features) -> (..., out_features) of the weight's dtype.

    No gradients. `x` is floating point, on the device that the weight was laid out for; autocast changes nothing here.
    """
    with without_autocast(x):
        y = weight.linear(x.reshape(-1, weight.format.in_features))
    return y.view(*x.shape[:-1], weight.out_features)
