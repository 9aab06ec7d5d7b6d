"""Quantisers without state: one factor of a product, from rows of numbers to codes and to values with a gradient.

A quantiser is an `nn.Module`, because those that learn (`questlm.quant.learned`, `questlm.quant.adabin`) keep what they
learn in parameters and buffers: it is saved, loaded and moved with the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from questlm import ops
from questlm.errors import CheckpointError, ConfigError, quoted
from questlm.ops import Grid, Operand
from questlm.ops.reference.storage import stored_form

__all__ = [
    "CenteredSignQuantizer",
    "DynamicQuantizer",
    "LearningQuantizer",
    "MaskedRounding",
    "Quantizer",
    "SparseQuantizer",
    "refuse_transforms",
]


def refuse_transforms() -> None:
    """Raise ConfigError under a transform of torch.func: kernels and their gradients have no rule for one."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise ConfigError(
            "quantised layers do not run under torch.func (vmap, grad, jvp, ...); loop over the inputs, take gradients "
            "with torch.autograd, or run the model with its plain products inside questlm.quant.dense(model)"
        )


class MaskedRounding(NamedTuple):
    """Rounding whose gradient is 1 or 0 by distance: codes, product and gradient can be computed without `values`.

    Attributes:
        grid, block_size: as of the quantiser; the step follows from the rows.
        mask_bound: the gradient of an entry passes unchanged where |x_h| <= mask_bound * step and is zero elsewhere
            (on a sparse grid also by what is dropped, see `ops.quantize`); None: it passes everywhere.
    """

    grid: Grid
    block_size: int
    mask_bound: float | None


class Quantizer(nn.Module, ABC):
    """One factor of a linear layer's product, weight or activation.

    Called on x (..., K) it gives the values (..., K) that x takes, in the Hadamard domain where `block_size` > 1, with
    the method's gradient to x and to the quantiser's own parameters.

    Attributes:
        grid: what codes mean; None for a quantiser whose values are not codes (sparse bf16).
        block_size: of the Hadamard transform; 1: none.
        setting: what it was made for, as 'lsq, 4 bits, int'; '' where `make_quantizer` did not make it.
    """

    grid: Grid | None
    block_size: int
    setting: str = ""

    @abstractmethod
    def operand(self, x: Tensor) -> Operand:
        """Codes of rows (rows, K), as a factor of `ops.scaled_matmul`; no gradient."""

    @abstractmethod
    def values(self, x: Tensor, operand: Operand) -> Tensor:
        """What `operand`, made of the rows x (rows, K), stands for: (rows, K) of the dtype of x, with the gradient."""

    @property
    def rounding(self) -> MaskedRounding | None:
        """The rounding and the mask that say all about this quantiser; None where only `operand` and `values` do.

        With one the layer takes kernels and the weight cache, and the check before training knows where the gradient
        must be zero.
        """
        return None

    def step_per_scale(self) -> Tensor | None:
        """Learned steps in units of the row's scale, (1, 1) or (rows, 1); None where the grid has a fixed one."""
        return None

    def offset(self) -> Tensor | None:
        """Learned offset, (1, 1); None where there is none."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., K)."""
        refuse_transforms()
        rows = x.reshape(-1, x.shape[-1])
        return self.values(rows, self.operand(rows)).reshape(x.shape)


class LearningQuantizer(Quantizer):
    """A quantiser with parameters of its own, whose state names the setting that they were learned in.

    A learned step of 2 bits has the shape of one of 4 bits, so nothing else would notice where a state is loaded into a
    model of another method, width or format. The name is a uint8 tensor (UTF-8), as all of a state dict is tensors. A
    state without it, from before there was one, loads as it is.
    """

    def get_extra_state(self) -> Tensor:
        """`setting` as bytes, (n,) uint8, on the CPU wherever the model is."""
        return torch.tensor(list(self.setting.encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: what a quantiser was made for does not change. Loading has compared it."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        *rest: Any,
    ) -> None:  # fmt: skip
        key = f"{prefix}_extra_state"
        learned_in = _text(state_dict[key]) if key in state_dict else ""
        if learned_in and self.setting and learned_in != self.setting:
            raise CheckpointError(
                f"the state of {quoted(prefix.rstrip('.'))} was learned with {quoted(learned_in)}, but this model is "
                f"prepared with {quoted(self.setting)}; prepare it with the method, bits and format of the state"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if key in missing_keys:
            missing_keys.remove(key)


def _text(state: Any) -> str:
    """The setting that a state names, which may have been cast with the rest; '' on the meta device."""
    if isinstance(state, Tensor) and state.is_meta:
        return ""
    try:
        return bytes(int(value) for value in state.tolist()).decode(errors="replace")
    except (AttributeError, TypeError, ValueError, OverflowError):
        return repr(state)


class _Masked(torch.autograd.Function):
    """x_q in the rotated domain; backward IHT(M * gradient). Saves the mask bits and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, block_size: int, mask_bound: float | None) -> Tensor:
        quantized = ops.quantize(x, grid, block_size, mask_bound)
        ctx.save_for_backward(quantized.mask)
        ctx.block_size = block_size
        values = ops.dequantize(quantized.codes, quantized.step, grid)
        return ops.as_dtype(values, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        dx = ops.masked_hadamard(gradients[0], mask, ctx.block_size)
        return ops.as_dtype(dx, gradients[0].dtype), None, None, None


class DynamicQuantizer(Quantizer):
    """Step from the rows themselves, gradient 1 or 0 by distance: QuEST and its variants, STE, QuaRot, BitNet.

    A subclass may have codes (`operand`) or a gradient (`values`) of its own; it then has no `rounding`.

    Args:
        mask_bound: gradients pass where |x_h| <= mask_bound * step; None: everywhere.
    """

    grid: Grid

    def __init__(self, grid: Grid, block_size: int, mask_bound: float | None) -> None:
        super().__init__()
        self.grid, self.block_size, self.mask_bound = grid, block_size, mask_bound

    @property
    def rounding(self) -> MaskedRounding | None:
        kind = type(self)
        if kind.operand is not DynamicQuantizer.operand or kind.values is not DynamicQuantizer.values:
            return None
        return MaskedRounding(self.grid, self.block_size, self.mask_bound)

    def operand(self, x: Tensor) -> Operand:
        codes, step, _ = ops.quantize(x.detach(), self.grid, self.block_size)
        return Operand(codes, self.grid, step)

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        result: Tensor
        if self.mask_bound is None:
            result = _StraightThrough.apply(ops.hadamard(x, self.block_size), ops.operand_values(operand))
        else:
            result = _Masked.apply(x, self.grid, self.block_size, self.mask_bound)
        return result


class _StraightThrough(torch.autograd.Function):
    """Replace x by other values in the forward pass; the gradient goes to x as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        return values.to(x.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


_SIGN = Grid(2, None, scale="one")


class CenteredSignQuantizer(Quantizer):
    """g sign(W - mean(W)) with g = mean|W| over the whole tensor; straight-through gradient. The weights of BitNet."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.block_size = _SIGN, 1

    def operand(self, x: Tensor) -> Operand:
        x = x.detach()
        unit = ops.power_of_two(x.reshape(1, -1))  # sums of large entries leave float32
        step, center = 2 * (x / unit).abs().mean() * unit, ((x / unit).mean() * unit).to(x.dtype)
        codes, step, _ = ops.quantize(x, _SIGN, 1, None, step, center)
        return Operand(codes, _SIGN, step)

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        result: Tensor = _StraightThrough.apply(x, ops.operand_values(operand))
        return result


class SparseQuantizer(Quantizer):
    """2:4 sparse bf16 weights: of each 4 neighbouring entries the 2 largest, rounded; straight-through gradient.

    Entries that are dropped keep their gradient too, so that they can come back.
    """

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.grid, self.block_size = None, block_size

    def operand(self, x: Tensor) -> Operand:
        rotated = ops.hadamard(x.detach().to(torch.promote_types(x.dtype, torch.float32)), self.block_size)
        return Operand(stored_form(rotated, "bf16") * ops.kept_entries(rotated, 1))

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        result: Tensor = _StraightThrough.apply(ops.hadamard(x, self.block_size), operand.data)
        return result
