"""The interface of a quantiser: one factor of a product, from rows of numbers to codes and to values with a gradient.

A quantiser is an `nn.Module`, because those that learn keep what they learn in parameters and buffers: it is saved,
loaded and moved with the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from questlm.errors import CheckpointError, ConfigError, quoted
from questlm.grid import Steps
from questlm.ops import Grid, Operand

__all__ = ["LearningQuantizer", "MaskedRounding", "Quantizer", "StraightThrough", "refuse_transforms"]


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

    Called on x (..., K) it returns the quantised values (..., K), in the Hadamard domain where `block_size` > 1, with
    the method's gradient to x and to the quantiser's own parameters.

    Attributes:
        grid: what codes mean; None for a quantiser whose values are not codes (sparse bf16).
        block_size: of the Hadamard transform; 1: none.
        setting: what it was made for, as 'lsq, 4 bits, int'; '' where `make_quantizer` did not make it.
        values_format: how the packed format stores the values of a quantiser without a grid; None where there is one.
        steps: numbers that the steps of a weight's rows are kept in.
        starts_from_data: whether parameters take their first values from the first tensor that is quantised. That pass
            breaks a compiled graph, so it has to come before compiling.
    """

    grid: Grid | None
    block_size: int
    setting: str = ""
    values_format: Literal["bf16-2:4"] | None = None
    steps: Steps = "fp32"
    starts_from_data: bool = False

    def extra_repr(self) -> str:
        """Levels and numbers of the steps, for `repr`."""
        return "values" if self.grid is None else f"{self.grid.levels} levels, {self.steps} steps"

    @abstractmethod
    def operand(self, x: Tensor) -> Operand:
        """Return the codes of the rows x (rows, K), as a factor of `ops.scaled_matmul`; no gradient."""

    @abstractmethod
    def values(self, x: Tensor, operand: Operand) -> Tensor:
        """Return the values (rows, K) of `operand`, the codes of x, in the dtype of x, with the gradient."""

    @property
    def rounding(self) -> MaskedRounding | None:
        """Grid and mask that describe this quantiser completely, or None where only `operand` and `values` do.

        A layer whose quantiser has one uses fused kernels and the weight cache, and the check before training knows
        where its gradient must be zero.
        """
        return None

    def set_rounding(self, rounding: MaskedRounding) -> None:
        """Round so from now on; only for a quantiser that has a `rounding`, and of the same block size."""
        raise NotImplementedError(f"{type(self).__name__} has more to it than a grid and a mask")

    def step_per_scale(self) -> Tensor | None:
        """Return learned step sizes in units of the row's scale, (1, 1) or (rows, 1).

        None where the grid has a fixed one.
        """
        return None

    def offset(self) -> Tensor | None:
        """Return the learned offset, (1, 1), or None."""
        return None

    def needs_data(self) -> bool:
        """Whether parameters have no values yet, because no tensor has been seen. Waits for the device."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantised values of x (..., K), with the method's gradient."""
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
        """Return `setting` as bytes, (n,) uint8, on the CPU wherever the model is."""
        return torch.tensor(list(self.setting.encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: loading has compared the setting, and it does not change."""

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
    """Read the setting from a state dict, whose tensor may have been cast; '' on the meta device."""
    if isinstance(state, Tensor) and state.is_meta:
        return ""
    try:
        return bytes(int(value) for value in state.tolist()).decode(errors="replace")
    except (AttributeError, TypeError, ValueError, OverflowError):
        return repr(state)


class StraightThrough(torch.autograd.Function):
    """Replace x by other values in the forward pass; the gradient goes to x as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        return values.to(x.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
