"""What FSDP moves of a weight: what the layer makes of it, and nothing wider.

A quantised layer multiplies codes, and FSDP cuts weights by rows, whose codes depend on no other row. So each process
quantises its own rows, once an optimizer step, and the all-gather carries packed codes and one step a row: 4 bits an
entry where float32 has 32. A layer that multiplies in bf16 gets its weight in bf16. The rest (norms, what quantisers
learn, weights whose scale is taken over the whole tensor) goes as it is.

In the other direction the gradient dy^T x_q is summed over micro-batches and processes in the rotated domain; mask and
inverse transform, which go row by row too, are then applied to the own rows, once an optimizer step. This is
`questlm.quant.cached_weights` for a model that is cut, and gives the same numbers.

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

_Gathered = tuple[Tensor, ...]
_SENDER = "sender"  # attribute of a layer whose weight goes as codes


def gather_as_codes(model: nn.Module, processes: int, dtype: torch.dtype) -> None:
    """Let the weights of `model` travel in the form that its layers use. To be done before `fully_shard`.

    Args:
        processes: among whom it will be cut. A weight whose rows they cannot share equally goes as it is.
        dtype: what products are computed in.
    """
    uses = Counter(id(weight) for module in model.modules() if (weight := module._parameters.get("weight")) is not None)
    for module in model.modules():
        weight = module._parameters.get("weight")
        if uses[id(weight)] > 1:  # a tied head: what stands in its place would be two
            continue
        if weight is None or weight.ndim != 2 or weight.shape[0] % processes or type(weight) is not nn.Parameter:
            continue
        if isinstance(module, FakeQuantLinear):
            if _quantizes_rows(module):
                vars(module)[_SENDER] = _Sender(module, dtype)
                module.weight = _as_parameter(weight, _SentAsCodes)
        elif _multiplies_bfloat16(module, dtype):
            module.weight = _as_parameter(weight, _SentAsBfloat16)


@contextmanager
def gathered_codes(model: nn.Module) -> Iterator[None]:
    """Quantise the rows of this process now, for all passes inside the block; its gradients are right behind it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what a pass without gradients gathered last, FSDP leaves whole
    senders = [vars(module)[_SENDER] for module in model.modules() if _SENDER in vars(module)]
    for sender in senders:
        sender.encode()
    try:
        yield
    finally:
        for sender in senders:
            sender.bring_back()


def _quantizes_rows(layer: FakeQuantLinear) -> bool:
    """Whether a row's codes follow from the row alone, at every time of the training."""
    rounding = None if layer.weight_quantizer is None else layer.weight_quantizer.rounding
    return layer.caches_weight and layer.strength is None and rounding is not None and rounding.grid.scale != "absmean"


def _multiplies_bfloat16(module: nn.Module, dtype: torch.dtype) -> bool:
    if isinstance(module, StoredLinear | StoredEmbedding):
        return module.stored_dtype == "bf16"
    return type(module) is nn.Linear and dtype is torch.bfloat16


def _as_parameter(weight: nn.Parameter, kind: type[_Sent]) -> nn.Parameter:
    return nn.Parameter(_of_kind(weight.detach(), kind), weight.requires_grad)


def _of_kind(tensor: Tensor, kind: type[_Sent]) -> _Sent:
    made: _Sent = torch.Tensor._make_subclass(kind, tensor)
    return made


_aten = torch.ops.aten
_KEEPING = {
    *(_aten.detach.default, _aten.alias.default, _aten.view.default, _aten.slice.Tensor, _aten.split.Tensor),
    *(_aten.new_zeros.default, _aten.as_strided.default, _aten.clone.default, _aten._to_copy.default),
}
"""What FSDP does to a parameter on the way to its part of it."""


class _Sent(Tensor):
    """Rows of a weight that say to FSDP how to gather them, and are otherwise an ordinary tensor."""

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
    """The same memory as an ordinary tensor, which is what all but the operations above give."""
    return rows.expand(rows.shape)


# -- codes -------------------------------------------------------------------------------------------------------------


class _Sender:
    """One quantised layer: the codes of the rows that this process has, and the whole weight's when it is gathered."""

    def __init__(self, layer: FakeQuantLinear, dtype: torch.dtype) -> None:
        rounding = None if layer.weight_quantizer is None else layer.weight_quantizer.rounding
        assert rounding is not None
        self.layer, self.rounding, self.dtype = layer, rounding, dtype
        self.symbols = rounding.grid.levels + bool(rounding.grid.group)  # a sparse grid has one for what is dropped
        self.own: Encoded | None = None

    @torch.no_grad()
    def encode(self) -> None:
        weight = self.layer.weight
        assert isinstance(weight, DTensor)
        if weight.grad is not None:
            raise RuntimeError("gathered_codes needs weights without a gradient; call optimizer.zero_grad() first")
        self.own = self._encoded(weight.to_local(), self.rounding.mask_bound)

    @torch.no_grad()
    def bring_back(self) -> None:
        own, self.own = self.own, None
        gradient = self.layer.weight.grad
        if own is not None and isinstance(gradient, DTensor):
            rows = gradient.to_local()
            rows.copy_(ops.masked_hadamard(rows, own.mask, self.layer.block_size, rows.dtype))

    def pack(self, rows: Tensor) -> _Gathered:
        """Bits and steps of the own rows (rows, K)."""
        operand = (self.own or self._encoded(rows, None)).operand
        assert operand.step is not None
        codes = ops.plain_codes(operand.data, self.rounding.grid)
        return ops.pack(codes, self.symbols), operand.step

    def unpack(self, bits: Tensor, step: Tensor) -> None:
        """Make the whole weight's operand of everyone's bits and steps, where the layer looks for it."""
        codes, grid, cached = (
            ops.unpack(bits, self.symbols, self.layer.in_features),
            self.rounding.grid,
            self.layer.cached_weight,
        )
        if cached is None:
            form = self._encoded(step.new_ones(1, self.layer.in_features), None).operand  # as this device likes it
            data = torch.empty(codes.shape, dtype=form.data.dtype, device=codes.device)
        else:
            data = cached.operand.data
        with _preserve_version(data):  # as FSDP does where it fills tensors again
            data.copy_(ops.codes_in_form(codes, grid, data.dtype))
        self.layer.mode = CachedWeight(ops.operand_of(data, step, grid), None, self.dtype, None)

    def _encoded(self, rows: Tensor, mask_bound: float | None) -> Encoded:
        rows = _plain(rows)
        with ops.without_autocast(rows):
            return ops.encode(rows, self.rounding.grid, self.layer.block_size, mask_bound, self.dtype)


class _SentAsCodes(_Sent):
    """Rows of a weight that are gathered as codes."""

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: tuple[int, ...], module: nn.Module, mp_policy: Any
    ) -> tuple[_Gathered, _Sender]:
        sender: _Sender = vars(module)[_SENDER]
        return sender.pack(self), sender

    def fsdp_post_all_gather(
        self, gathered: _Gathered, sender: _Sender, param_dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, _Gathered] | None:
        sender.unpack(*gathered)
        if out is not None:
            return None
        assert sender.layer.cached_weight is not None
        # FSDP frees the operand's memory, and takes it again, together with its own.
        return gathered[1].new_zeros(()).as_subclass(_GradientCarrier), (sender.layer.cached_weight.operand.data,)


class _GradientCarrier(Tensor):
    """One zero that, asked for a matrix in its memory, pretends to be one: only its shape and its gradient are used."""

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


class _SentAsBfloat16(_Sent):
    """Rows of a weight that are gathered as bf16, into float32 again: the layer rounds to bf16 what is bf16 already."""

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: tuple[int, ...], module: nn.Module, mp_policy: Any
    ) -> tuple[_Gathered, None]:
        return (_plain(self).to(torch.bfloat16),), None

    def fsdp_post_all_gather(
        self, gathered: _Gathered, metadata: None, param_dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, _Gathered] | None:
        if out is None:
            whole = gathered[0].to(param_dtype)
            return whole, (whole,)
        with torch.no_grad(), _preserve_version(out):
            out.copy_(gathered[0])
        return None
