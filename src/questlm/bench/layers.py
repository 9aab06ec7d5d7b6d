"""Time the linear layers of packed models beside products of the same shapes in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questlm import ops
from questlm.artifact.format import WeightFormat
from questlm.artifact.matrices import matrix_tensors
from questlm.artifact.read import Artifact, load_artifact
from questlm.artifact.shapes import matrix_shapes
from questlm.bench.timing import Case, SpeedReport, check_counts, run_cases
from questlm.grid import Grid
from questlm.inference.engine import Weights
from questlm.inference.linear import packed_layer
from questlm.progress import progress

__all__ = ["bits_text", "layer_speed"]

_DENSE_BYTES = (
    2**28
)  # of float32 weights that take turns: far more than the caches hold, so that each is read from memory


def layer_speed(
    artifacts: Sequence[Path],
    batches: Sequence[int] = (1, 8, 64),
    seconds: float = 30.0,
    threads: int | None = None,
    weights: Weights = "auto",
) -> SpeedReport:
    """Time each kind of linear layer of packed models beside `torch.nn.functional.linear` in float32, on the CPU.

    All layers of one shape and format take turns, as in a model, where the weights of a layer come from memory and not
    from a cache. Packed weights of a small model may fit a cache whole, here as there.

    Args:
        artifacts: folders of packed models.
        batches: numbers of input rows.
        seconds: about how long all of it may take.
        threads: that torch and the kernels use; None: as many as now.
        weights: as in `questlm.load`.

    Raises:
        ArtifactError: a folder is no packed model.
        ConfigError: no batches, or one below 1; `seconds` or `threads` not above 0.
    """
    check_counts(batches, "batches")
    cases: list[Case] = []
    with progress("loading", len(artifacts)) as update:
        for done, folder in enumerate(artifacts):
            update(done, folder.name)
            cases += _cases(folder.resolve().name, load_artifact(folder), batches, weights)
    return run_cases("layer", cases, seconds, threads)


def bits_text(weight_format: WeightFormat) -> str:
    """Widths of a matrix, such as W4A4, WtA8 for ternary weights, or W8A16 where the input is not rounded."""
    stored = {"int8": "8", "bf16": "16", "bf16-2:4": "16", "float32": "32"}
    weight = weight_format.weight
    own = stored[weight] if isinstance(weight, str) else _width(weight.grid)
    return f"W{own}A{'16' if weight_format.act is None else _width(weight_format.act.grid)}"


def _width(grid: Grid) -> str:
    return "t" if grid.levels == 3 else str((grid.levels - 1).bit_length())


def _cases(name: str, artifact: Artifact, batches: Sequence[int], weights: Weights) -> Iterator[Case]:
    shapes = matrix_shapes(artifact.config.model)
    groups: dict[tuple[tuple[int, int], WeightFormat], list[str]] = {}
    for matrix, weight_format in artifact.config.weight_formats():
        if matrix != "embed":
            groups.setdefault((shapes[matrix], weight_format), []).append(matrix)
    for ((rows, columns), weight_format), matrices in groups.items():
        layers = [_layer(artifact, matrix, weight_format, columns, weights) for matrix in matrices]
        count = max(1, min(len(matrices), _DENSE_BYTES // (4 * rows * columns)))
        dense = [torch.randn(rows, columns) for _ in range(count)]
        kinds = dict.fromkeys(matrix.rpartition(".")[2] for matrix in matrices)
        for batch in batches:
            x = torch.randn(batch, columns)
            yield Case(
                artifact=name,
                what=" ".join(kinds),
                shape=f"{rows} x {columns}",
                bits=bits_text(weight_format),
                batch=batch,
                work=(len(layers), count),
                packed=partial(_run_all, [*layers], x),
                dense=partial(_run_all, [partial(F.linear, weight=weight) for weight in dense], x),
            )


def _layer(artifact: Artifact, matrix: str, weight_format: WeightFormat, columns: int, weights: Weights) -> nn.Module:
    prepack = partial(ops.prepack, device=torch.device("cpu"), dtype=torch.float32, stay_packed=weights == "packed")
    return packed_layer(matrix_tensors(artifact.tensors, matrix), columns, weight_format, prepack)


def _run_all(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> None:
    for layer in layers:
        layer(x)
