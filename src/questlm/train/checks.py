"""Proof, before the first step, that quantisation is really on: also in the compiled path.

Everything can be in place and the model still train dense: a filter that matches nothing, a compiler that drops a
round trip as if it changed nothing, an estimator whose mask is inverted. So the first batch is run once and measured:

1. each quantised layer's product differs from the plain product, by about as much as its grids promise;
2. the logits of the compiled path are nearer to those of the quantised model run plainly than to the dense model's;
3. in every quantised weight's gradient, brought to the rotated domain, the entries outside the trust mask are zero and
   the others are not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.errors import TrainingError
from questlm.parallel import whole
from questlm.quant import FakeQuantLinear, dense, quantized_layers
from questlm.quant.quantizers import DynamicQuantizer

__all__ = ["Expected", "check_quantization", "compute_plainly"]

_LossFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(inputs, targets) -> loss, and the logits of each sequence's last token."""

_EDGE = 1e-4  # entries as near the mask's bound as this may fall to either side of it in another order of summation
_ZERO = 1e-3  # of the gradient's rms: what the two transforms' rounding may leave of an exact zero


@dataclass(frozen=True)
class Expected:
    """What a model computes plainly (never compiled, without kernels, not cut between processes) on one batch.

    Attributes:
        loss, dense_loss: with and without quantisation.
        logits, dense_logits: of each sequence's last token.
        differences: relative distance of each quantised layer's product from the plain product, by name.
    """

    loss: float
    dense_loss: float
    logits: Tensor
    dense_logits: Tensor
    differences: dict[str, float]


@torch.no_grad()
def compute_plainly(model: nn.Module, loss_fn: _LossFn, batch: tuple[Tensor, Tensor]) -> Expected:
    """Run `model` with and without quantisation on one batch of (inputs, targets), each (batch, tokens) int64.

    On the reference, so that kernels have to agree with it, too; and none is compiled that only this would need.
    """
    with ops.using_backend("reference"):
        loss, logits = loss_fn(*batch)
        differences = {name: _product_difference(layer) for name, layer in quantized_layers(model).items()}
    with dense(model):
        dense_loss, plain = loss_fn(*batch)
    return Expected(float(loss), float(dense_loss), logits, plain, differences)


def check_quantization(
    model: nn.Module,
    loss_fn: _LossFn,
    batch: tuple[Tensor, Tensor],
    expected: Expected,
    holding: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Run the check on the batch that `expected` was computed on; gradients are cleared afterwards.

    Args:
        loss_fn: the path that trains, compiled or not, on one process or on several.
        holding: context of an optimizer step, behind which gradients are whole.

    Returns:
        What was measured, for the run record.

    Raises:
        TrainingError: quantisation is not in effect; says where.
    """
    layers = quantized_layers(model)
    model.zero_grad(set_to_none=True)
    with holding():  # of a dense model too, whose compiling would else be part of the time it trained
        loss, logits = loss_fn(*batch)
        loss.backward()
    if not layers:
        model.zero_grad(set_to_none=True)
        return {"quantized_layers": 0}
    with torch.no_grad(), ops.using_backend("reference"):
        leaks = {name: _gradient_outside_mask(layer) for name, layer in layers.items()}
    model.zero_grad(set_to_none=True)

    same = [name for name, difference in expected.differences.items() if difference == 0]
    if same:
        raise TrainingError(f"quantisation is not in effect: the layer {same[0]!r} computes the plain product")
    to_quantized, to_plain = (float((logits - other).norm()) for other in (expected.logits, expected.dense_logits))
    if not to_quantized < to_plain:
        raise TrainingError(
            f"the compiled path does not compute the quantised model: on the first batch its logits are "
            f"{to_quantized:.3g} from the quantised model's and {to_plain:.3g} from the dense model's; "
            f"train with --set train.compile=off and report this"
        )
    leaking = [name for name, leak in leaks.items() if leak is not None and not leak <= _ZERO]
    if leaking:
        raise TrainingError(f"the trust mask is not in effect: gradient passes outside it in the layer {leaking[0]!r}")
    return {
        "quantized_layers": len(layers),
        "loss": float(loss.detach()),
        "loss_eager": expected.loss,
        "loss_dense": expected.dense_loss,
        "logits_from_quantized": to_quantized,
        "logits_from_dense": to_plain,
        "largest_gradient_outside_mask": max((leak for leak in leaks.values() if leak is not None), default=None),
    }


def _product_difference(layer: FakeQuantLinear) -> float:
    """Relative distance between a layer's quantised and plain product on random rows."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(16, layer.in_features, generator=generator).to(layer.weight.device, layer.weight.dtype)
    with dense(layer):
        plain = layer(x)
    return float((layer(x) - plain).norm() / plain.norm())


def _gradient_outside_mask(layer: FakeQuantLinear) -> float | None:
    """Largest gradient that a masked entry received, over the rms of the others; None where nothing is masked.

    Raises:
        TrainingError: the layer has no gradient, or only zeros.
    """
    quantizer = layer.weight_quantizer
    gradient = None if layer.weight.grad is None else whole(layer.weight.grad)
    if gradient is None or not bool(gradient.abs().sum() > 0):
        raise TrainingError("a quantised layer receives no gradient; the estimator lets nothing pass")
    if not isinstance(quantizer, DynamicQuantizer) or quantizer.mask_bound is None or quantizer.grid.group:
        return None  # no mask, or one that is not a bound
    weight = whole(layer.weight)
    step = ops.quantize(weight, quantizer.grid, layer.block_size).step
    distance = ops.hadamard(weight, layer.block_size).abs() / (quantizer.mask_bound * step)
    rotated = ops.hadamard(gradient.float(), layer.block_size)
    masked = distance > 1 + _EDGE
    if not bool(masked.any()):
        return None
    return float(rotated[masked].abs().max() / rotated[distance < 1 - _EDGE].square().mean().sqrt())
