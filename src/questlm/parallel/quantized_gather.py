"""Quantised all-gather: FSDP gathers the codes of a weight instead of its float32 values.

A quantised layer multiplies codes. FSDP shards weights by rows, and the codes of a row depend on no other row. So each
process quantises its own rows, once an optimizer step, and the all-gather carries packed codes and one step size a row:
4 bits an entry where float32 has 32. Over fast links packing and unpacking take longer than they save, so codes can
also travel in the one byte each in which they are multiplied. A layer that multiplies in bf16 gathers its weight in
bf16. The rest (norms, what quantisers learn, weights whose step size depends on the full tensor) is gathered in
float32.

In the other direction the gradient dy^T x_q is summed over micro-batches and processes in the rotated domain. Mask and
inverse transform, which act on rows too, are then applied to the own rows, once an optimizer step. This is
`questlm.quant.cached_weights` for a sharded model, and gives the same numbers.

FSDP2 asks a parameter's own tensor what to gather (`fsdp_pre_all_gather`) and what to make of it
(`fsdp_post_all_gather`); the tensors here answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter as _preserve_version
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from questlm import ops
from questlm.ops import Encoded
from questlm.quant import FakeQuantLinear, StoredEmbedding, StoredLinear
from questlm.quant.layers.mode import CachedWeight

__all__ = ["gather_as_codes", "gathered_codes"]

_Tensors = tuple[Tensor, ...]
_CODES = "weight_codes"  # attribute of a layer whose weight is gathered as codes


def gather_as_codes(model: nn.Module, world_size: int, dtype: torch.dtype, packed: bool = True) -> None:
    """Make FSDP gather each weight of `model` in the format that its layer multiplies. Call it before `fully_shard`.

    Args:
        world_size: number of processes. A weight whose rows they cannot share equally is gathered as it is.
        dtype: of the products.
        packed: codes travel packed into their bits; otherwise as they are multiplied, one byte each.
    """
    uses = Counter(id(weight) for module in model.modules() if (weight := module._parameters.get("weight")) is not None)
    for module in model.modules():
        weight = module._parameters.get("weight")
        if uses[id(weight)] > 1:  # a tied head: replacing it would untie it
            continue
        if weight is None or weight.ndim != 2 or weight.shape[0] % world_size or type(weight) is not nn.Parameter:
            continue
        if isinstance(module, FakeQuantLinear):
            if _quantizes_rows(module):
                vars(module)[_CODES] = _WeightCodes(module, dtype, packed)
                module.weight = _as_parameter(weight, _GatheredAsCodes)
        elif _multiplies_bfloat16(module, dtype):
            module.weight = _as_parameter(weight, _GatheredAsBfloat16)


@contextmanager
def gathered_codes(model: nn.Module) -> Iterator[None]:
    """Quantise the rows of this process once for all passes inside the block; behind it gradients are complete."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # FSDP keeps what a pass without gradients gathered last
    groups = _alike([vars(module)[_CODES] for module in model.modules() if _CODES in vars(module)])
    for group in groups:
        _encode(group)
    try:
        yield
    finally:
        for group in groups:
            _finish_gradients(group)


def _quantizes_rows(layer: FakeQuantLinear) -> bool:
    """Whether the codes of a row depend on that row alone, during the whole training."""
    rounding = None if layer.weight_quantizer is None else layer.weight_quantizer.rounding
    return layer.caches_weight and layer.strength is None and rounding is not None and rounding.grid.scale != "absmean"


def _multiplies_bfloat16(module: nn.Module, dtype: torch.dtype) -> bool:
    if isinstance(module, StoredLinear | StoredEmbedding):
        return module.stored_dtype == "bf16"
    return type(module) is nn.Linear and dtype is torch.bfloat16


def _as_parameter(weight: nn.Parameter, kind: type[_GatheredWeight]) -> nn.Parameter:
    return nn.Parameter(_of_kind(weight.detach(), kind), weight.requires_grad)


def _of_kind(tensor: Tensor, kind: type[_GatheredWeight]) -> _GatheredWeight:
    made: _GatheredWeight = torch.Tensor._make_subclass(kind, tensor)
    return made


_aten = torch.ops.aten
_KEEPING = {
    *(_aten.detach.default, _aten.alias.default, _aten.view.default, _aten.slice.Tensor, _aten.split.Tensor),
    *(_aten.new_zeros.default, _aten.as_strided.default, _aten.clone.default, _aten._to_copy.default),
}
"""Operations by which FSDP makes its shard of a parameter; their results keep the subclass."""


class _GatheredWeight(Tensor):
    """Rows of a weight with FSDP's hooks for gathering them; otherwise an ordinary tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs or {})
        if func not in _KEEPING:
            return result
        return tree_map_only(Tensor, lambda tensor: _of_kind(tensor, cls), result)


def _plain(rows: Tensor) -> Tensor:
    """The same memory as an ordinary tensor."""
    return rows.expand(rows.shape)


# -- codes -------------------------------------------------------------------------------------------------------------


class _WeightCodes:
    """Codes of one layer's weight: those of this process's rows, and those of all rows once they are gathered.

    Attributes:
        own: what travels of this process's rows, and the mask of their gradient; None outside of `gathered_codes`.
    """

    def __init__(self, layer: FakeQuantLinear, dtype: torch.dtype, packed: bool) -> None:
        rounding = None if layer.weight_quantizer is None else layer.weight_quantizer.rounding
        assert rounding is not None
        self.layer, self.rounding, self.dtype, self.packed = layer, rounding, dtype, packed
        self.symbols = rounding.grid.levels + bool(rounding.grid.group)  # a sparse grid has one for what is dropped
        self.code_dtype = torch.uint8  # in which this device multiplies them; known once the first are made
        self.own: tuple[_Tensors, Tensor | None] | None = None

    @property
    def rows(self) -> Tensor:
        """This process's rows of the weight."""
        assert isinstance(self.layer.weight, DTensor)
        return _plain(self.layer.weight.to_local())

    def take(self, encoded: Encoded) -> None:
        """Keep codes and mask of this process's rows for an optimizer step."""
        self.own = self._travelling(encoded), encoded.mask

    def pack(self, rows: Tensor) -> _Tensors:
        """Codes and steps of this process's rows, (rows, K) float32, as they travel."""
        if self.own is not None:
            return self.own[0]
        rows = _plain(rows)
        with ops.without_autocast(rows):
            return self._travelling(ops.encode(rows, self.rounding.grid, self.layer.block_size, None, self.dtype))

    def unpack(self, codes: Tensor, step: Tensor) -> _Tensors:
        """Put the operand of the full weight, from the codes and steps of all rows, into the layer's cache.

        Returns:
            The tensors that had to be made for it.
        """
        made: _Tensors = ()
        if self.packed:
            data = self._unpacked(codes)
            made = (data,)
        else:
            data = codes.view(self.code_dtype)
        operand = ops.operand_of(data, step, self.rounding.grid)
        self.layer.mode = CachedWeight(operand, None, self.dtype, None)
        return made

    def _travelling(self, encoded: Encoded) -> _Tensors:
        data, step = encoded.operand.data, encoded.operand.step
        assert step is not None
        self.code_dtype = data.dtype
        if self.packed:
            return ops.pack(ops.plain_codes(data, self.rounding.grid), self.symbols), step
        return data.view(torch.uint8), step

    def _unpacked(self, bits: Tensor) -> Tensor:
        """Codes as they are multiplied, in the memory of those before them."""
        codes = ops.unpack(bits, self.symbols, self.layer.in_features)
        cached = self.layer.cached_weight
        data = torch.empty_like(codes, dtype=self.code_dtype) if cached is None else cached.operand.data
        with _preserve_version(data):  # as FSDP does where it fills tensors again
            data.copy_(ops.codes_as(codes, self.rounding.grid, data.dtype))
        return data


def _alike(all_codes: list[_WeightCodes]) -> list[list[_WeightCodes]]:
    """Group the weights whose rows one kernel call can quantise together."""
    groups: dict[object, list[_WeightCodes]] = {}
    for codes in all_codes:
        layer = codes.layer
        key = (codes.rounding, layer.in_features, layer.block_size, layer.weight.dtype)
        groups.setdefault(key, []).append(codes)
    return list(groups.values())


@torch.no_grad()
def _encode(group: list[_WeightCodes]) -> None:
    if any(codes.layer.weight.grad is not None for codes in group):
        raise RuntimeError("gathered_codes needs weights without a gradient; call optimizer.zero_grad() first")
    first, rows = group[0], [codes.rows for codes in group]
    grid, block_size, bound = first.rounding.grid, first.layer.block_size, first.rounding.mask_bound
    with ops.without_autocast(rows[0]):
        for codes, encoded in zip(group, ops.encode_many(rows, grid, block_size, bound, first.dtype), strict=True):
            codes.take(encoded)


@torch.no_grad()
def _finish_gradients(group: list[_WeightCodes]) -> None:
    """Mask and rotate back the gradients of this process's rows, in place."""
    gradients, masks = [], []
    for codes in group:
        own, codes.own = codes.own, None
        gradient = codes.layer.weight.grad
        if own is not None and isinstance(gradient, DTensor):
            gradients.append(gradient.to_local())
            masks.append(own[1])
    if gradients:
        ops.masked_hadamard_many(gradients, masks, group[0].layer.block_size)


class _GatheredAsCodes(_GatheredWeight):
    """Rows of a weight that are gathered as codes."""

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: tuple[int, ...], module: nn.Module, mp_policy: Any
    ) -> tuple[_Tensors, _WeightCodes]:
        codes: _WeightCodes = vars(module)[_CODES]
        return codes.pack(self), codes

    def fsdp_post_all_gather(
        self, gathered: _Tensors, codes: _WeightCodes, param_dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, _Tensors] | None:
        made = codes.unpack(*gathered)
        if out is not None:
            return None
        return gathered[1].new_zeros(()).as_subclass(_GradientCarrier), made  # FSDP frees it together with its own


class _GradientCarrier(Tensor):
    """A zero that `as_strided` expands to any shape: a weight of which only the shape and the gradient are used."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.as_strided:
                carrier, shape = args[0].as_subclass(Tensor), args[1]
                return carrier.expand(shape)
            return func(*args, **(kwargs or {}))


# -- bf16 --------------------------------------------------------------------------------------------------------------


class _GatheredAsBfloat16(_GatheredWeight):
    """Rows of a weight that are gathered as bf16 and stored as float32; the layer rounds to bf16 anyway."""

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: tuple[int, ...], module: nn.Module, mp_policy: Any
    ) -> tuple[_Tensors, None]:
        return (_plain(self).to(torch.bfloat16),), None

    def fsdp_post_all_gather(
        self, gathered: _Tensors, metadata: None, param_dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, _Tensors] | None:
        if out is None:
            weight = gathered[0].to(param_dtype)
            return weight, (weight,)
        with torch.no_grad(), _preserve_version(out):
            out.copy_(gathered[0])
        return None
