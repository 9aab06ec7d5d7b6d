"""The table of methods. A method is a value: how it transforms, which grid it uses, where its gradient passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from questlm.config import QuantSpec
from questlm.errors import ConfigError, nearest_name
from questlm.ops import Grid, LinearFormat, fit_block_size
from questlm.quant.estimators import trust_bound
from questlm.quant.grids import gaussian_grid

__all__ = ["METHODS", "Method", "find_method", "linear_format"]


@dataclass(frozen=True)
class Method:
    """Parts of a quantisation method.

    Attributes:
        summary: one line for tables.
        source: paper and section.
        rotates: whether rows go through the Hadamard transform.
        grid: bits -> grid.
        mask_bound: (grid, rotates) -> gradients pass where |x_h| <= mask_bound * step.
    """

    summary: str
    source: str
    rotates: bool
    grid: Callable[[int | str], Grid]
    mask_bound: Callable[[Grid, bool], float]


METHODS: dict[str, Method] = {
    "quest": Method(
        summary="Hadamard normalisation, MSE-optimal Gaussian grid, trust estimator",
        source="arXiv 2502.05003",
        rotates=True,
        grid=gaussian_grid,
        mask_bound=trust_bound,
    ),
}


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        ConfigError: no such method; the message gives the nearest name and all of them.
    """
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}.{nearest_name(name, METHODS)} There are: {', '.join(METHODS)}.")
    return METHODS[name]


def linear_format(spec: QuantSpec, in_features: int) -> LinearFormat:
    """How `spec` quantises a linear layer with `in_features` inputs.

    Raises:
        ConfigError: unknown method, or no Hadamard block divides `in_features`.
    """
    method = find_method(spec.method)
    try:
        block_size = fit_block_size(in_features, spec.block_size) if method.rotates else 1
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    return LinearFormat(
        block_size=block_size,
        weight=None if spec.weight_bits == 16 else method.grid(spec.weight_bits),
        act=None if spec.act_bits == 16 else method.grid(spec.act_bits),
    )
