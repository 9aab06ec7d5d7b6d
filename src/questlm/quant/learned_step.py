"""How a method learns its step. Imports no torch, so that the table of methods is read without it.

Each method makes its `LearnedStep` in its own file (`methods/lsq.py`: `lsq_rule`, with `_lsq_start` for the first step
size); `quantizers/learned.py` computes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LearnedStep"]


@dataclass(frozen=True)
class LearnedStep:
    """The choices by which methods with a learned step differ; `quantizers/learned.py` has the formulas.

    Attributes:
        ratio: r, steps per parameter.
        upper: end of the range in which gradients pass, in steps; lower: its beginning.
        inside: derivative of x_q by s there: 'residual' c - u, 'level' c, or 'nothing' 0.
        start: function from the entries that share a parameter, as rows (n, m) in units of their scale with the largest
            magnitude in [1, 2), to the first value of the parameter (n,). It must be proportional to the rows.
        balance: Q of the gradient scale 1 / sqrt(m Q); None: no scale.
        offset: function from the tensor to the first (step, offset), likewise proportional; None: no learned offset.
    """

    ratio: float
    lower: float
    upper: float
    inside: Literal["residual", "level", "nothing"]
    start: Callable[[Tensor], Tensor]
    balance: float | None = None
    offset: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
