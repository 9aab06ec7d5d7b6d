"""Bytes that processes exchange in one optimizer step, from the settings alone. No torch.

A test holds these counts to what `questlm.parallel.traffic` counts in a real step.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from questlm.artifact.shapes import block_shapes, matrix_shapes, norm_widths
from questlm.config import ModelConfig, ParallelConfig, QuantSpec
from questlm.grid import LayerFormat, packed_width
from questlm.quant.layer_formats import layer_formats
from questlm.quant.methods import find_method

__all__ = ["Exchanged", "exchanged_bytes"]


class Exchanged(NamedTuple):
    """Bytes that each process hands to collectives in a step, by their kind."""

    all_gather: float = 0.0
    reduce_scatter: float = 0.0
    all_reduce: float = 0.0

    def sent(self, processes: int) -> float:
        """Bytes that each process sends over its links, if collectives pass parts around a ring."""
        share = (processes - 1) / processes
        return (processes - 1) * self.all_gather + share * self.reduce_scatter + 2 * share * self.all_reduce


def exchanged_bytes(
    model: ModelConfig,
    quant: QuantSpec,
    engine: Literal["ddp", "replicas", "fsdp"],
    processes: int,
    settings: ParallelConfig,
    micro_batches: int = 1,
    half: bool = True,
) -> Exchanged:
    """Count what one optimizer step exchanges.

    Args:
        model: with `vocab_size` set.
        micro_batches: passes of a step.
        half: whether products are in bf16, as on a GPU, so that matrices that are not quantised travel so.
    """
    gradients = model.parameters * (2.0 if settings.gradients == "bf16" else 4.0)
    if engine != "fsdp":
        return Exchanged(all_reduce=gradients)
    formats = layer_formats(quant, {name: shape for name, shape in matrix_shapes(model).items() if name != "embed"})
    learns = find_method(quant.method).learns

    def layer(name: str, rows: int, columns: int) -> float:
        found = formats.get(name)
        return _gathered(rows, columns, None if learns else found, processes, settings, half and found is None)

    norms = sum(4.0 * -(-width // processes) for name, width in norm_widths(model).items() if name != "norm")
    block = sum(layer(f"layers.0.{name}", *shape) for name, shape in block_shapes(model).items())
    gathers = 1 if settings.keep_gathered else 2 * micro_batches
    outer = 4.0 * -(-model.hidden // processes)  # the final norm
    outer += _stored(model, quant, processes, half and quant.embeddings == "float")
    passes = 1 if settings.keep_gathered else micro_batches
    return Exchanged(gathers * (model.layers * block + norms) + passes * outer, gradients)


def _gathered(
    rows: int, columns: int, format: LayerFormat | None, processes: int, settings: ParallelConfig, half: bool
) -> float:
    """Bytes of one process's rows of a block's matrix."""
    here = -(-rows // processes)
    if rows % processes or format is None or format.weight is None or format.weight.grid is None:
        return here * columns * (2.0 if half and not rows % processes else 4.0)
    grid = format.weight.grid
    codes = columns if settings.gather == "operand" else packed_width(columns, grid.levels + bool(grid.group))
    return here * (codes + 4.0)


def _stored(model: ModelConfig, quant: QuantSpec, processes: int, half: bool) -> float:
    """Bytes of one process's rows of embedding and head."""
    entries = -(-(model.vocab_size or 0) // processes) * model.hidden
    if model.tied_head or (model.vocab_size or 0) % processes:
        return entries * (4.0 if model.tied_head else 8.0)
    return entries * (4.0 if quant.embeddings == "bf16" else 4.0 + (2.0 if half else 4.0))
