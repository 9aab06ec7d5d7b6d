"""Gradient alignment: how close an estimator's gradient is to the gradient without quantisation.

At the same weights and on the same tokens, the gradient that training follows through the quantised model is compared,
by its cosine, with the gradient of the same model unquantised (arXiv 2502.05003, section 3.3, measures its estimator
this way). Two things can turn it: the quantised forward pass computes other activations, and the estimator decides
which gradients pass through the rounding. `ste` and `quest-noht` share their forward pass, so they differ by the
estimator alone; `quest` also rotates, which changes what is rounded.

The cosine is taken for each layer's weight, in the domain of the weight, and for the residual at the input of each
block, where the errors of all blocks above accumulate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questlm.config import QuantSpec
from questlm.diagnostics.layers import Batch, block_of, group_by, kind_of, layer_names, mean_and_std, prepared
from questlm.progress import progress

__all__ = ["ESTIMATORS", "cosine", "gradient_alignment"]

ESTIMATORS = ("ste", "quest-noht", "quest")
"""Methods compared: straight-through; trust without the Hadamard transform; trust with it."""

_STREAM = "block "  # + index: the name of a gradient at a block's input


def gradient_alignment(
    model: nn.Module,
    batches: Sequence[Batch],
    spec: QuantSpec,
    methods: Sequence[str] = ESTIMATORS,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Measure the cosine between quantised and full-precision gradients of the mean cross-entropy.

    Args:
        model: plain (not prepared), with its blocks in `model.layers`. It is prepared and restored on the way, and is
            unchanged afterwards.
        batches: at least one, on the model's device.
        spec: bits, block size and stored dtype of the embeddings, the same for every method and the reference.
        methods: names of the methods to compare.
        show_progress: whether to show a progress bar.

    Returns:
        {"batches", "methods": {method: {"layers", "weights_by_block", "weights_by_kind", "stream_by_block"}}}; each of
            the four maps a layer, block or kind to {"mean", "std"} over the batches. The cosines of the layers in a
            block, or of a kind, are averaged first. None where a gradient is zero.
    """
    reference = spec.model_copy(update={"weight_bits": 16, "act_bits": 16})
    names = layer_names(model, spec)
    cosines: dict[str, list[dict[str, float | None]]] = {method: [] for method in methods}
    with progress("gradient alignment", len(batches) * (1 + len(methods)), show_progress) as update:
        done = 0
        for batch in batches:
            true = _gradients(model, names, batch, reference)
            update(done := done + 1)
            for method in methods:
                found = _gradients(model, names, batch, spec.model_copy(update={"method": method}))
                cosines[method].append({name: cosine(found[name], true[name]) for name in true})
                update(done := done + 1)
    return {"batches": len(batches), "methods": {method: _summary(names, cosines[method]) for method in methods}}


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Return the cosine of the angle between two tensors seen as vectors, in float64; None where one is zero."""
    a, b = a.flatten().double(), b.flatten().double()
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else None


def _gradients(model: nn.Module, names: Sequence[str], batch: Batch, spec: QuantSpec) -> dict[str, Tensor]:
    """Return the gradients of the loss by layer name, and by 'block i' for the residual."""
    streams: list[Tensor] = []
    inputs, targets = batch
    blocks = model.get_submodule("layers")
    hooks = [block.register_forward_pre_hook(_keep_first(streams)) for block in blocks.children()]
    try:
        with prepared(model, spec), torch.enable_grad():
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
            weights = [model.get_parameter(f"{name}.weight") for name in names]
            gradients = torch.autograd.grad(loss, [*weights, *streams])
    finally:
        for hook in hooks:
            hook.remove()
    return dict(zip([*names, *(f"{_STREAM}{i}" for i in range(len(streams)))], gradients, strict=True))


def _keep_first(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _, inputs: kept.append(inputs[0])


def _summary(names: Sequence[str], cosines: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    """Return mean and spread over batches, by layer, block and kind."""
    streams = [name for name in cosines[0] if name not in names]
    return {
        "layers": {name: mean_and_std([batch[name] for batch in cosines]) for name in names},
        "weights_by_block": _grouped(group_by(names, block_of), cosines),
        "weights_by_kind": _grouped(group_by(names, kind_of), cosines),
        "stream_by_block": {
            name.removeprefix(_STREAM): mean_and_std([batch[name] for batch in cosines]) for name in streams
        },
    }


def _grouped(groups: dict[Any, list[str]], cosines: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    def average(batch: dict[str, float | None], members: list[str]) -> float | None:
        return mean_and_std([batch[name] for name in members])["mean"]

    return {str(key): mean_and_std([average(b, members) for b in cosines]) for key, members in groups.items()}
