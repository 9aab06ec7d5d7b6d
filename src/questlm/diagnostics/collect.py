"""Run all diagnostics of one run, with a JSON value as the result."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from questlm.config import QuantSpec
from questlm.diagnostics.alignment import gradient_alignment
from questlm.diagnostics.error import error_by_layer
from questlm.diagnostics.layers import Batch, capture_inputs, layer_names, weights_of
from questlm.diagnostics.masks import mask_history
from questlm.diagnostics.normality import normality_by_layer
from questlm.errors import CheckpointError
from questlm.progress import progress
from questlm.quant import find_method, restore

__all__ = ["diagnose", "method_of_masks"]


def diagnose(
    model: nn.Module,
    batches: Sequence[Batch],
    spec: QuantSpec,
    snapshots: Iterable[tuple[int, Mapping[str, Tensor]]],
    snapshot_count: int,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Measure everything that the pictures show.

    Args:
        model: the trained model, prepared or plain, with its blocks in `model.layers`. Activations are those of its own
            forward pass; everything else is measured on a plain copy.
        batches: token ids and targets on the model's device.
        spec: bits to diagnose at; weights must have fewer than 16.
        snapshots: (step, {parameter name: tensor}) of the checkpoints, oldest first.
        snapshot_count: number of snapshots, for the progress bar.
        show_progress: whether to show progress bars.

    Returns:
        {"gradient_alignment", "masks", "normality", "error"}: see the function of each module.
    """
    plain = restore(copy.deepcopy(model))
    names = layer_names(plain, spec)
    activations = capture_inputs(model, names, batches)
    weights = weights_of(plain, names)
    chosen = ((step, _layer_weights(tensors, names, step)) for step, tensors in snapshots)
    block = spec.block_size
    alignment = gradient_alignment(plain, batches, spec, show_progress=show_progress)
    masks = mask_history(chosen, snapshot_count, method_of_masks(spec.method), spec.weight_bits, block, show_progress)
    with progress("normality and error", 2, show_progress) as update:
        shapes = normality_by_layer(weights, activations, block)
        update(1)
        errors = error_by_layer(weights, activations, spec)
        update(2)
    return {"gradient_alignment": alignment, "masks": masks, "normality": shapes, "error": errors}


def method_of_masks(method: str) -> str:
    """Return the method whose trust mask is shown for a run of `method`: itself if it masks weights, else quest."""
    parts = find_method(method)
    return method if parts.trusts and not parts.weight.learned else "quest"


def _layer_weights(tensors: Mapping[str, Tensor], names: Sequence[str], step: int) -> dict[str, Tensor]:
    missing = [name for name in names if f"{name}.weight" not in tensors]
    if missing:
        raise CheckpointError(f"the checkpoint of step {step} lacks the weight of {missing[0]}; it is of another model")
    return {name: tensors[f"{name}.weight"] for name in names}
