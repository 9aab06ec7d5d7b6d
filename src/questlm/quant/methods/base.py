"""The types that describe a method: what it does to each factor of a product, and what surrounds the layer.

Quantisers, which need torch, are imported when one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from questlm.config.quant import Bits
from questlm.errors import ConfigError, quoted
from questlm.grid import Factor, Grid
from questlm.quant.estimators import Estimator
from questlm.quant.grids import fp4_grid, gaussian_grid, lloydmax_grid
from questlm.quant.learned_step import LearnedStep

if TYPE_CHECKING:
    from torch import Tensor

    from questlm.quant.quantizers import Quantizer

__all__ = [
    "ALL_BITS",
    "ALL_FORMATS",
    "DENSE_FORMATS",
    "FactorSpec",
    "Method",
    "Request",
    "Role",
    "dynamic",
    "eight_bits",
    "format_grid",
    "learned",
    "mean_magnitude",
]

Role = Literal["weight", "activation"]

ALL_BITS: tuple[Bits, ...] = (4, 1, 2, 3, 5, 6, 7, 8, "ternary")
"""Every width, the usual one first."""

DENSE_FORMATS = ("int", "ternary", "fp4", "lloydmax")
ALL_FORMATS = (*DENSE_FORMATS, "int-2:4", "bf16-2:4")


@dataclass(frozen=True)
class Request:
    """What a quantiser is made for: one factor of one linear layer.

    Attributes:
        bits: one of the widths of the factor.
        format: 'int' unless the method has others.
        block_size: of the Hadamard transform that the rows go through first; 1: none.
        rows: of the weight (out_features); 1 for activations.
        trust: outer trust factor s; None: the method's own.
    """

    bits: Bits
    format: str = "int"
    block_size: int = 1
    rows: int = 1
    trust: float | None = None


@dataclass(frozen=True)
class FactorSpec:
    """How a method quantises one factor of a product, weight or activation.

    Attributes:
        bits: the widths it is defined for, its usual one first.
        make: function from a `Request` to the quantiser.
        learned: its learned parameters, as text for tables; '' for none.
        stored: function from a `Request` to what a packed model stores of this factor, without torch; None: a
            quantiser is made and asked.
    """

    bits: tuple[Bits, ...]
    make: Callable[[Request], Quantizer]
    learned: str = ""
    stored: Callable[[Request], Factor] | None = None

    def factor(self, request: Request) -> Factor:
        """What a packed model holds of this factor."""
        return self.stored(request) if self.stored is not None else _made_factor(self.make(request), request)


@dataclass(frozen=True)
class Method:
    """A quantisation method: a transform, and for each factor a grid, a scale and an estimator.

    Attributes:
        summary: one line for tables.
        source: paper.
        doc: formula, initialisation, gradients, and what differs from the source.
        weight, act: how each factor is quantised.
        rotates: whether rows go through the Hadamard transform first.
        formats: of the weights; activations take the dense ones among them.
        trusts: whether it uses the outer trust factor s.
        input_norm: whether an RMSNorm with a learned gain stands before each quantised layer.
        gradual: share of the training over which quantisation is faded in, unless the settings say otherwise.
        branches: whether each feed-forward layer has a small branch of 8 bits beside the rest (pQuant).
        centers: whether the running mean of a layer's inputs is taken off before they are rounded, and its product
            added (`questlm.quant.layers.corrections`).
        diagonal: whether a layer has a diagonal of full precision beside its quantised matrix (likewise).
        unpackable: what of its quantisers the packed format does not hold, so that `pack` refuses; '' for nothing.
    """

    summary: str
    source: str
    doc: str
    weight: FactorSpec
    act: FactorSpec
    rotates: bool = False
    formats: tuple[str, ...] = ("int", "ternary")
    trusts: bool = False
    input_norm: bool = False
    gradual: float = 0.0
    branches: bool = False
    centers: bool = False
    diagonal: bool = False
    unpackable: str = ""

    @property
    def learns(self) -> bool:
        """Whether quantisers of this method have parameters of their own."""
        return bool(self.weight.learned or self.act.learned)

    def factor(self, role: str) -> FactorSpec:
        """Return how the factor 'weight' or 'activation' is quantised.

        Raises:
            ConfigError: `role` is neither of them.
        """
        if role not in ("weight", "activation"):
            raise ConfigError(f"role = {quoted(role)}; allowed are 'weight' and 'activation'")
        return self.weight if role == "weight" else self.act


def dynamic(grid: Callable[[Request], Grid], estimator: Estimator, bits: tuple[Bits, ...] = ALL_BITS) -> FactorSpec:
    """Describe a factor whose step sizes are computed from its rows; the estimator says where gradients pass."""

    def make(request: Request) -> Quantizer:
        from questlm.quant.quantizers import MaskedQuantizer, SparseQuantizer

        if request.format == "bf16-2:4":
            return SparseQuantizer(request.block_size)
        chosen = grid(request)
        return MaskedQuantizer(chosen, request.block_size, estimator(chosen, request.block_size > 1, request.trust))

    def stored(request: Request) -> Factor:
        if request.format == "bf16-2:4":
            return Factor(None, values_format="bf16-2:4")
        return Factor(grid(request))

    return FactorSpec(bits, make, stored=stored)


def learned(
    grid: Callable[[Request], Grid],
    rule: Callable[[Request], LearnedStep],
    learns: str,
    bits: tuple[Bits, ...],
    by_row: bool = False,
) -> FactorSpec:
    """Describe a factor with a learned step size: one for the tensor, or `by_row` one for each row of a weight."""

    def make(request: Request) -> Quantizer:
        from questlm.quant.quantizers.learned import LearnedQuantizer

        return LearnedQuantizer(grid(request), request.block_size, rule(request), request.rows if by_row else 1)

    def stored(request: Request) -> Factor:
        return Factor(grid(request), offset=rule(request).offset is not None)

    return FactorSpec(bits, make, learns, stored)


def _made_factor(quantizer: Quantizer, request: Request) -> Factor:
    """What a quantiser gives, seen on rows of zeros."""
    import torch

    operand = quantizer.operand(torch.zeros(request.rows, max(request.block_size, 16)))
    return Factor(operand.grid, operand.offset is not None, quantizer.values_format)


def format_grid(request: Request) -> Grid:
    """Return the MSE-optimal grid for Gaussian rows in the requested format."""
    if request.format == "fp4":
        return fp4_grid()
    if request.format == "lloydmax":
        return lloydmax_grid(request.bits)
    grid = gaussian_grid(request.bits)
    return Grid(grid.levels, grid.step_per_scale, group=2) if request.format == "int-2:4" else grid


def eight_bits(request: Request) -> Grid:
    """Return 255 levels up to the row's largest magnitude, for activations and branches of 8 bits."""
    return Grid(255, 1 / 127, scale="absmax")


def mean_magnitude(x: Tensor) -> Tensor:
    """Return the mean |x| of each row, (..., K) -> (...)."""
    return x.abs().mean(-1)
