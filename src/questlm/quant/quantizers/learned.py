"""Learned step sizes: LSQ and its relatives, in one formula.

A tensor x with step s = r |p| (p the learned parameter, r a constant of the method) and offset o is rounded to

    x_q = s c + o,      c = nearest level of u = (x - o) / s   in steps.

With u inside (lower, upper) the gradient passes to x unchanged, outside it is zero. The gradient to p is

    d x_q / d p = r sign(p) * ( c      outside, where x_q = s c + o moves with s alone
                                g(c, u) inside ),

where LSQ takes the derivative through the rounding, g = c - u (arXiv 1902.08153, eq. 3), PACT takes the quantiser for
the identity inside, g = 0 (arXiv 1805.06085), and one bit, s sign(x), has g = c. The offset gets 1 outside and 0 inside
(arXiv 2004.09576). Sums go over the entries that share the parameter; LSQ scales them by 1 / sqrt(m Q), m being the
number of those entries and Q the highest level in units of p, so that parameters of all sizes learn equally fast.

A step may also be relative: s = r p rms(row). So a step per row can be learned for activations, whose rows come and go;
the rms is a constant for the gradient, as in QuEST.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from questlm import ops
from questlm.ops import Grid, Operand
from questlm.quant.learned_step import LearnedStep
from questlm.quant.quantizers import LearningQuantizer

__all__ = ["LearnedQuantizer", "StatefulQuantizer"]


class StatefulQuantizer(LearningQuantizer):
    """A quantiser whose parameters take their first values from the first tensor it sees.

    Whether that has happened is in the buffer `initialized`, so a loaded or resumed model keeps what it has learned.
    """

    initialized: Tensor
    starts_from_data = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self._ready = False  # the buffer's last known value, because reading it waits for the device and breaks graphs

    @abstractmethod
    def initialize(self, x: Tensor) -> bool:
        """Set the parameters from the rows x (rows, K). Return False where x is all zeros or not finite."""

    def needs_data(self) -> bool:
        return not bool(self.initialized)

    @torch.no_grad()
    def ensure_initialized(self, x: Tensor) -> None:
        """Initialise from the rows x (rows, K), unless that has been done, here or before the state was saved.

        Rows of zeros, or with entries that are not finite, give no step size: the quantiser then waits for the next
        tensor and returns zeros until then. The main process decides for all, so that all start from the same values.
        """
        if self._ready or x.is_meta or x.numel() == 0:
            return
        self._take_first_values(x)

    @torch.compiler.disable(
        reason="a quantiser takes its first values from the first batch, outside of a graph; run the model on one "
        "batch before it is compiled with fullgraph=True"
    )
    def _take_first_values(self, x: Tensor) -> None:
        if not bool(self.initialized):
            usable = torch.tensor(self.initialize(x.detach()), device=x.device)
            if dist.is_available() and dist.is_initialized():
                for tensor in (usable, *self.parameters(recurse=False)):
                    dist.broadcast(tensor, src=0)
            if not bool(usable):
                return
            self.initialized.fill_(True)
        self._ready = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = False


class LearnedQuantizer(StatefulQuantizer):
    """Quantises with a step size that is a parameter, by the formulas at the top of this file.

    Args:
        grid: without `step_per_scale`; its scale is 'one' for absolute steps or 'rms' for relative ones.
        rule: the method.
        rows: number of parameters: 1, or one for each row of a weight.
    """

    grid: Grid

    def __init__(self, grid: Grid, block_size: int, rule: LearnedStep, rows: int) -> None:
        super().__init__()
        self.grid, self.block_size, self.rule = grid, block_size, rule
        self.scale = nn.Parameter(torch.ones(rows, 1))
        self.shift = nn.Parameter(torch.zeros(1, 1)) if rule.offset else None
        self._terms = (rule.lower, rule.upper, rule.inside, rule.balance)

    def step_per_scale(self) -> Tensor:
        return self.rule.ratio * self.scale.detach().abs() * self.initialized

    def offset(self) -> Tensor | None:
        return None if self.shift is None else self.shift.detach()

    def initialize(self, x: Tensor) -> bool:
        rotated = ops.hadamard(x.to(self.scale.dtype), self.block_size)
        shift = torch.zeros(1, 1)
        if self.rule.offset is not None:
            unit = ops.power_of_two(rotated.reshape(1, -1))  # squares and sums of entries far from 1 leave float32
            scale, shift = (number * unit for number in self.rule.offset(rotated / unit))
        else:
            smallest = torch.finfo(rotated.dtype).tiny
            relative = rotated / ops.row_scale(rotated, self.grid).clamp_min(smallest)
            relative = relative if self.scale.shape[0] > 1 else relative.reshape(1, -1)
            unit = ops.power_of_two(relative)
            scale = self.rule.start(relative / unit) * unit.view(-1)
        sized = scale > 0
        if not bool(sized.any()) or not bool(scale.isfinite().all()) or not bool(shift.isfinite().all()):
            return False
        # A row of zeros starts with the mean step size of the others, because a step size of 0 has no gradient.
        self.scale.copy_(torch.where(sized, scale, scale[sized].mean()).view(-1, 1))
        if self.shift is not None:
            self.shift.copy_(shift.view(1, 1))
        return True

    def operand(self, x: Tensor) -> Operand:
        self.ensure_initialized(x)
        shift = self.offset()
        codes, step, _ = ops.quantize(x.detach(), self.grid, self.block_size, None, self.step_per_scale(), shift)
        return Operand(codes, self.grid, step, shift)

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        rotated = ops.hadamard(x, self.block_size) if self.block_size > 1 else x
        # Plain values, not the rule itself, because torch.compile traces them.
        result: Tensor = _LearnedRound.apply(
            rotated, self.scale, self.shift, operand.data, operand.step, self.grid, self._terms
        )
        return result


class _LearnedRound(torch.autograd.Function):
    """Values of given codes, with the gradients to x, parameter and offset that stand at the top of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        codes: Tensor,
        step: Tensor,
        grid: Grid,
        terms: tuple[float, float, str, float | None],
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift, codes, step)
        ctx.grid, ctx.terms = grid, terms
        return ops.operand_values(Operand(codes, grid, step, shift)).to(x.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, codes, step = ctx.saved_tensors
        lower, upper, kind, balance = ctx.terms
        dy = gradients[0].to(step.dtype)
        levels = ops.factor(codes, ctx.grid, step.dtype)
        smallest = torch.finfo(step.dtype).tiny  # a row of zeros has a relative step of 0
        u = (x.to(step.dtype) - (0 if shift is None else shift)) / step.clamp_min(smallest)
        inside = (u > lower) & (u < upper)
        by_step = {"residual": levels - u, "level": levels, "nothing": torch.zeros_like(u)}[kind]
        # The step size of a row is ratio * |p| * rms(row), so its derivative by |p| is step / |p|.
        terms = dy * torch.where(inside, by_step, levels) * (step / scale.abs())
        factor = 1.0 if balance is None else (balance * max(x.numel(), 1) / scale.shape[0]) ** -0.5
        dscale = _shared_sum(terms, scale.shape[0]) * scale.sign() * factor
        dshift = None if shift is None else (dy * ~inside).sum().view(1, 1) * factor
        return (dy * inside).to(x.dtype), dscale, dshift, None, None, None, None


def _shared_sum(terms: Tensor, rows: int) -> Tensor:
    return terms.sum(-1, keepdim=True) if rows > 1 else terms.sum().view(1, 1)
