"""Proof, before the first step, that quantisation is really on: also in the compiled path.

Everything can be in place and the model still train dense: a filter that matches nothing, a compiler that drops a
round trip as if it changed nothing, an estimator whose mask is inverted. So the first batch is run once and measured:

1. each quantised layer's product differs from the plain product, by about as much as its grids promise;
2. the logits of the compiled path are nearer to those of the quantised model run plainly than to the dense model's;
3. in every quantised weight's gradient, brought to the rotated domain, the entries outside the trust mask are zero and
   the others are not, unless the dense model has no gradient there either.

What a layer computes can be zero with and without quantisation, as where a model begins with output projections of
zeros. Such a layer proves nothing, and passes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.errors import TrainingError, quoted
from questlm.parallel import full_tensor
from questlm.quant import FakeQuantLinear, dense, quantized_layers, set_quantization_strength, skipped_layers

__all__ = ["Expected", "check_quantization", "compute_plainly"]

_LossFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(inputs, targets) -> loss, and the logits of each sequence's last token."""

_EDGE = 1e-4  # entries as near the mask's bound as this may fall to either side of it in another order of summation
_ZERO = 1e-3  # of the gradient's rms: what the two transforms' rounding may leave of an exact zero
_TOKENS = 512  # of one sequence: enough to see which layers of the dense model receive a gradient


@dataclass(frozen=True)
class Expected:
    """What a model computes plainly (never compiled, without kernels, not sharded) on one batch.

    Attributes:
        loss, dense_loss: with and without quantisation.
        logits, dense_logits: of each sequence's last token.
        differences: relative distance of each quantised layer's product from the plain product, by name; NaN where
            both are zero.
        skipped: layers that are not quantised though they might be, and why (`questlm.quant.skipped_layers`).
        without_gradient: names of the quantised layers whose weights get no gradient in the dense model either.
    """

    loss: float
    dense_loss: float
    logits: Tensor
    dense_logits: Tensor
    differences: dict[str, float]
    without_gradient: frozenset[str]
    skipped: dict[str, str]


def compute_plainly(model: nn.Module, loss_fn: _LossFn, batch: tuple[Tensor, Tensor]) -> Expected:
    """Run `model` with and without quantisation on one batch of (inputs, targets), each (batch, tokens) int64.

    On the reference, so that kernels have to agree with it, too; and none is compiled that only this would need. A
    layer that is being faded in is left fully quantised, for the check is of what it will be.
    """
    set_quantization_strength(model, 1.0)
    layers = quantized_layers(model)
    with torch.no_grad(), ops.using_backend("reference"):
        loss, logits = loss_fn(*batch)
        differences = {name: _product_difference(layer) for name, layer in layers.items()}
    with torch.no_grad(), dense(model):
        dense_loss, plain = loss_fn(*batch)
    reached = _reached_by_gradient(model, layers, loss_fn, batch)
    silent = frozenset(layers.keys() - reached)
    return Expected(float(loss), float(dense_loss), logits, plain, differences, silent, skipped_layers(model))


def _reached_by_gradient(
    model: nn.Module, layers: dict[str, FakeQuantLinear], loss_fn: _LossFn, batch: tuple[Tensor, Tensor]
) -> set[str]:
    """Names of the layers whose weights receive a gradient in the dense model, on a part of the batch.

    Every gradient is dropped as soon as it has been looked at, so that the model never holds more than one.
    """
    reached: set[str] = set()
    names = {id(layer.weight): name for name, layer in layers.items()}

    def look(parameter: Tensor) -> None:
        if parameter.grad is not None and bool((parameter.grad != 0).any()) and id(parameter) in names:
            reached.add(names[id(parameter)])
        parameter.grad = None

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(look) for parameter in trained]
    try:
        with dense(model):
            loss, _ = loss_fn(*(part[:1, :_TOKENS] for part in batch))
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return reached


def check_quantization(
    model: nn.Module,
    loss_fn: _LossFn,
    batch: tuple[Tensor, Tensor],
    expected: Expected,
    weight_cache: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Run the check on the batch that `expected` was computed on; gradients are cleared afterwards.

    Args:
        loss_fn: the path that trains, compiled or not, on one process or on several.
        weight_cache: context of an optimizer step, behind which gradients are complete.

    Returns:
        What was measured, for the run record.

    Raises:
        TrainingError: quantisation is not in effect; says where.
    """
    layers = quantized_layers(model)
    model.zero_grad(set_to_none=True)
    with weight_cache():  # of a dense model too, whose compiling would else be part of the time it trained
        loss, logits = loss_fn(*batch)
        loss.backward()
    with torch.no_grad(), ops.using_backend("reference"):
        silent = [name for name, layer in layers.items() if not _has_gradient(layer)]
        leaks = {name: _gradient_outside_mask(layer) for name, layer in layers.items() if name not in silent}
    model.zero_grad(set_to_none=True)
    if not layers:
        return {"quantized_layers": 0, "skipped_layers": expected.skipped}
    to_quantized, to_plain = (float((logits - other).norm()) for other in (expected.logits, expected.dense_logits))
    _require_quantized_products(expected, silent)
    _require_quantized_logits(expected, to_quantized, to_plain)
    _require_masked_gradients(leaks)
    return {
        "quantized_layers": len(layers),
        "skipped_layers": expected.skipped,
        "loss": float(loss.detach()),
        "loss_eager": expected.loss,
        "loss_dense": expected.dense_loss,
        "logits_from_quantized": to_quantized,
        "logits_from_dense": to_plain,
        "layers_without_gradient": len(silent),
        "largest_gradient_outside_mask": max((leak for leak in leaks.values() if leak is not None), default=None),
    }


def _require_quantized_products(expected: Expected, silent: list[str]) -> None:
    same = [name for name, difference in expected.differences.items() if difference == 0]
    if same:
        raise TrainingError(f"quantisation is not in effect: the layer {quoted(same[0])} computes the plain product")
    lost = [name for name in silent if name not in expected.without_gradient]
    if lost:
        raise TrainingError(
            f"the weight of the layer {quoted(lost[0])} receives no gradient, though it does in the dense model: the "
            f"estimator of this layer, or of one behind it, lets nothing pass; choose another quant.method"
        )


def _require_quantized_logits(expected: Expected, to_quantized: float, to_plain: float) -> None:
    if _differ(expected) and not to_quantized < to_plain:
        raise TrainingError(
            f"the compiled path does not compute the quantised model: on the first batch its logits are "
            f"{to_quantized:.3g} from the quantised model's and {to_plain:.3g} from the dense model's; "
            f"train with --set train.compile=off and report this"
        )


def _require_masked_gradients(leaks: dict[str, float | None]) -> None:
    leaking = [name for name, leak in leaks.items() if leak is not None and not leak <= _ZERO]
    if leaking:
        raise TrainingError(
            f"the trust mask is not in effect: gradient passes outside it in the layer {quoted(leaking[0])}"
        )


def _differ(expected: Expected) -> bool:
    """Whether the logits of the quantised and of the dense model differ by more than float32 rounds."""
    distance = (expected.logits - expected.dense_logits).norm()
    return bool(distance > torch.finfo(torch.float32).eps * expected.logits.norm())


def _product_difference(layer: FakeQuantLinear) -> float:
    """Relative distance between a layer's quantised and plain product on random rows; NaN where both are zero."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(16, layer.in_features, generator=generator).to(layer.weight.device, layer.weight.dtype)
    with dense(layer):
        plain = layer(x)
    return float((layer(x) - plain).norm() / plain.norm())


def _has_gradient(layer: FakeQuantLinear) -> bool:
    """Whether any entry of a weight has a gradient that is not zero; true of a frozen weight, which needs none."""
    if layer.weight.grad is None:
        return not layer.weight.requires_grad
    return bool((full_tensor(layer.weight.grad) != 0).any())


def _gradient_outside_mask(layer: FakeQuantLinear) -> float | None:
    """Largest gradient that a masked entry received, over the rms of the others; None where nothing is masked."""
    rounding = None if layer.weight_quantizer is None else layer.weight_quantizer.rounding
    if layer.weight.grad is None or rounding is None or rounding.mask_bound is None or rounding.grid.group:
        return None  # no mask, or one that is not a bound
    weight = full_tensor(layer.weight)
    step = ops.quantize(weight, rounding.grid, layer.block_size).step
    distance = ops.hadamard(weight, layer.block_size).abs() / (rounding.mask_bound * step)
    rotated = ops.hadamard(full_tensor(layer.weight.grad).float(), layer.block_size)
    masked = distance > 1 + _EDGE
    if not bool(masked.any()):
        return None
    return float(rotated[masked].abs().max() / rotated[distance < 1 - _EDGE].square().mean().sqrt())
