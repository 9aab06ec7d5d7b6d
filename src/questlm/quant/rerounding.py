"""Round the weights of a trained model to other grids than it was trained with, without training again.

Fewer bits make a matrix smaller. So does a larger step where codes are entropy-coded, because more of them are of the
middle levels; a smaller step makes the histogram flatter and the matrix larger. Both move the weights away from those
that were trained, so what they cost in loss has to be measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.grid import Grid
from questlm.ops import Operand
from questlm.ops.reference.storage import as_stored
from questlm.quant.grids import gaussian_grid
from questlm.quant.layers.linear import FakeQuantLinear
from questlm.quant.layers.stored import StoredEmbedding, StoredLinear
from questlm.quant.quantizers import MaskedQuantizer, Quantizer
from questlm.quant.quantizers.stored_steps import StoredStepsQuantizer

__all__ = [
    "CLIPS",
    "Layer",
    "Rounding",
    "own_quantizer",
    "rerounded",
    "rounded_anew",
    "roundings",
    "stored_matrices",
    "trained_values",
]

CLIPS = (0.85, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0)
"""Multipliers of the step, and so of where the outer levels are, that are tried for each number of bits."""

Layer = FakeQuantLinear | StoredEmbedding | StoredLinear


class Rounding(NamedTuple):
    """A grid to round to: bits, and what the step of the Gaussian grid of so many bits is multiplied by."""

    bits: int
    clip: float

    @property
    def grid(self) -> Grid:
        """The grid itself."""
        grid = gaussian_grid(self.bits)
        assert grid.step_per_scale is not None
        return replace(grid, step_per_scale=self.clip * grid.step_per_scale)


def roundings(layer: Layer) -> list[Rounding]:
    """Return the grids that a layer's weight may be rounded to: those with as many bits as it has, and with fewer.

    None for a weight of one bit, whose codes are signs whatever the step, nor for one whose grid is not evenly spaced
    around 0 with steps in proportion to the rms of rows: what such a method learned would be lost.
    """
    bits = _bits(layer)
    return [Rounding(fewer, clip) for fewer in range(2, bits + 1) for clip in CLIPS]


def rerounded(layer: Layer, rounding: Rounding) -> Operand:
    """Return codes and steps of a layer's weight on another grid, as `rounded_anew` uses them; no gradient."""
    with torch.no_grad():
        return _quantizer(layer, rounding).operand(layer.weight)


def trained_values(layer: Layer) -> Tensor:
    """Return the weight that the layer computes with now, (out, in), rotated where its codes are."""
    with torch.no_grad():
        if isinstance(layer, FakeQuantLinear):
            return ops.operand_values(layer.quantized_weight())
        if layer.quantizer is not None:
            return ops.operand_values(layer.quantizer.operand(layer.weight))
        return as_stored(layer.weight, layer.stored_dtype)


@contextmanager
def rounded_anew(choices: Iterable[tuple[Layer, Rounding]]) -> Iterator[None]:
    """Within it, layers compute with their weights on other grids, and are packed so."""
    before: list[tuple[Layer, dict[str, Any]]] = []
    try:
        for layer, rounding in choices:
            quantizer = _quantizer(layer, rounding).to(layer.weight.device)
            if isinstance(layer, FakeQuantLinear):
                spec = type(layer.spec)(**layer.spec.model_dump() | {"weight_bits": rounding.bits})
                new: dict[str, Any] = {"weight_quantizer": quantizer, "spec": spec}
            else:
                new = {"quantizer": quantizer, "stored_dtype": f"int{rounding.bits}"}
            before.append((layer, {name: getattr(layer, name) for name in new}))
            for name, value in new.items():
                setattr(layer, name, value)
        yield
    finally:
        for layer, old in before:
            for name, value in old.items():
                setattr(layer, name, value)


def stored_matrices(model: nn.Module) -> dict[str, list[Layer]]:
    """Return the layers that compute with each quantised or stored matrix, by the name of the first of them.

    A tied embedding has two.
    """
    found: dict[int, tuple[str, list[Layer]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            found.setdefault(id(module.weight), (name, []))[1].append(module)
    return dict(found.values())


def own_quantizer(layer: Layer) -> Quantizer | None:
    """Return the quantiser of a layer's weight, None where the weight is kept as numbers."""
    return layer.weight_quantizer if isinstance(layer, FakeQuantLinear) else layer.quantizer


def _quantizer(layer: Layer, rounding: Rounding) -> Quantizer:
    own = own_quantizer(layer)
    rows = MaskedQuantizer(rounding.grid, 1 if own is None else own.block_size, mask_bound=None)
    return rows if own is None or own.steps == "fp32" else StoredStepsQuantizer(rows, own.steps)


def _bits(layer: Layer) -> int:
    """Most bits that a weight can be rounded to; 0: to none."""
    quantizer = own_quantizer(layer)
    if isinstance(layer, StoredEmbedding | StoredLinear) and quantizer is None:
        return 7  # embeddings in int8 or bf16
    if isinstance(layer, FakeQuantLinear) and layer.quantized_narrow_branch() is not None:
        return 0  # the two branches share one matrix
    grid = None if quantizer is None else quantizer.grid
    if grid is None or not grid.plain or grid.levels < 4:
        return 0
    return (grid.levels - 1).bit_length()
