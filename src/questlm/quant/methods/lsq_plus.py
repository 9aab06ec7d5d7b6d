"""LSQ+: LSQ with a learned offset for activations (arXiv 2004.09576)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from questlm.grid import Grid
from questlm.quant.grids import level_count
from questlm.quant.learned_step import LearnedStep
from questlm.quant.methods.base import ALL_BITS, Method, Request, learned, mean_magnitude
from questlm.quant.methods.lsq import lsq_grid, lsq_rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["lsq_plus"]

_SHRINKS = [step / 100 for step in range(2, 101, 2)]  # shares of the range from minimum to maximum


def _lsq_plus_grid(request: Request) -> Grid:
    levels = level_count(request.bits)
    return Grid(levels, None, scale="one", zero=levels // 2)


def _lsq_plus_rule(request: Request) -> LearnedStep:
    grid = _lsq_plus_grid(request)
    top, start = grid.largest, partial(_best_range, grid=grid)
    return LearnedStep(1, -grid.zero_point, top, "residual", mean_magnitude, balance=max(top, 1), offset=start)


def _best_range(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(step, offset) of the smallest squared error among shrunken ranges from min to max."""
    import torch  # here, as a plan reads the table of methods without it

    low, high = x.min(), x.max()
    middle, width = (low + high) / 2, high - low
    if not bool(width > 0):
        return width, middle
    candidates = []
    for shrink in _SHRINKS:
        step = width * shrink / (grid.levels - 1)
        shift = middle - width * shrink / 2 + grid.zero_point * step
        code = ((x - shift) / step).round().clamp(-grid.zero_point, grid.largest)
        candidates.append(((code * step + shift - x).square().mean(), step, shift))
    errors = torch.stack([error for error, _, _ in candidates])
    _, step, shift = candidates[int(errors.argmin())]
    return step, shift


lsq_plus = Method(
    summary="LSQ with a learned offset for activations",
    source="arXiv 2004.09576",
    doc="""
Activations: s clip(round((x - o) / s), -Qn, Qp) + o with learned s and o, one each per tensor. Weights: as `lsq`.
Gradient to x and s: as `lsq` with x - o for x, and no formula of its own at 1 bit, where the offset takes that part. To
o: 0 inside, 1 outside, with the gradient scale of s.
Initialisation: weights as `lsq`; activations the s and o of least squared error among ranges from min to max, shrunk
about their middle to 2, 4, ..., 100 % (the paper minimises the same error by gradient descent).
""",
    weight=learned(lsq_grid, lsq_rule, "step, one per tensor", ALL_BITS),
    act=learned(_lsq_plus_grid, _lsq_plus_rule, "step and offset, one per tensor", ALL_BITS),
)
