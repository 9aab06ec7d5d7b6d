"""Methods and recipes that this study tries, as a plugin: what wins moves into questlm.

Each takes one thing of QuEST and changes it; the rest is QuEST's. Those that keep its kind of codes train with the same
kernels. The others round by PyTorch's operations, and `quest pack` refuses them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from questlm import ops
from questlm.config.quant import Bits
from questlm.ops import Grid, Operand
from questlm.parallel import local_shard
from questlm.quant import Method, Quantizer, find_method, quantized_layers, register_method
from questlm.quant.estimators import trust_bound
from questlm.quant.grids import gaussian_grid
from questlm.quant.methods import ALL_BITS, FactorSpec, Request
from questlm.quant.quantizers import DynamicQuantizer, MaskedQuantizer
from questlm.training import recipes
from questlm.training.recipes import Moment, Recipe, register_recipe
from questlm.training.recipes.cage import pull_to_grid

QUEST = find_method("quest")


# -- the same kernels ---------------------------------------------------------------------------


def factor(trust: float | None = None, scale: float = 1.0) -> FactorSpec:
    """QuEST's factor with another trust factor, or with a grid wider by `scale` and the same bound of the mask.

    Args:
        trust: gradients pass up to this many times the outermost level; None: as QuEST; infinity: everywhere.
    """

    def grid(request: Request) -> Grid:
        best = gaussian_grid(request.bits)
        assert best.step_per_scale is not None
        return replace(best, step_per_scale=best.step_per_scale * scale)

    def make(request: Request) -> Quantizer:
        rotates = request.block_size > 1
        bound = trust_bound(gaussian_grid(request.bits), rotates, request.trust if trust is None else trust) / scale
        return MaskedQuantizer(grid(request), request.block_size, None if trust == float("inf") else bound)

    return FactorSpec(ALL_BITS, make)


def variant(summary: str, weight: FactorSpec = QUEST.weight, act: FactorSpec = QUEST.act, **parts: object) -> Method:
    """QuEST on integer grids with other factors or other parts of a layer."""
    return replace(QUEST, summary=f"QuEST {summary}", source="this study", formats=("int",), weight=weight, act=act,
                   **parts)  # type: ignore[arg-type] # fmt: skip


for weight_trust, act_trust in ((2.0, None), (float("inf"), None), (None, 1.0), (None, 1.6), (None, 2.0), (1.0, None)):
    shown = f"w{weight_trust or 'own'}-a{act_trust or 'own'}"
    register_method(
        f"quest-trust-{shown}",
        variant(f"with trust factors of its own ({shown})", factor(weight_trust), factor(act_trust)),
    )

for weight_scale, act_scale in ((1.0, 1.15), (1.0, 0.9), (1.15, 1.0), (0.9, 1.0), (1.25, 1.25)):
    register_method(
        f"quest-scale-w{weight_scale}-a{act_scale}",
        variant(
            f"with levels {weight_scale} (weights) and {act_scale} (activations) times as far apart",
            factor(scale=weight_scale),
            factor(scale=act_scale),
        ),
    )

register_method("quest-norm", variant("with an RMSNorm before each layer", input_norm=True))
register_method("quest-center", variant("without the mean of the inputs", centers=True))
register_method("quest-diagonal", variant("with a diagonal of full precision beside each matrix", diagonal=True))
register_method("quest-both", variant("without the mean, with a diagonal", centers=True, diagonal=True))
register_method("quest-norm-diagonal", variant("with a norm and a diagonal", input_norm=True, diagonal=True))


# -- quantisers of their own ---------------------------------------------------------------------------


class LeakyTrust(DynamicQuantizer):
    """QuEST's codes; outside the trust bound a tenth of the gradient passes."""

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        trusted = super().values(x, operand)
        leak = 0.1 * (ops.hadamard(x, self.block_size) - trusted)
        return trusted + leak - leak.detach()


class BlockScaled(DynamicQuantizer):
    """A step for each Hadamard block of a row, in place of one for the row."""

    def operand(self, x: Tensor) -> Operand:
        return Operand(ops.operand_values(super().operand(x.reshape(-1, self.block_size))).reshape(x.shape))

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        blocks = x.reshape(-1, self.block_size)
        return super().values(blocks, operand).reshape(x.shape)


class Signed(DynamicQuantizer):
    """Signs +-1 of each channel, drawn from a seed, before the Hadamard transform.

    Layers that read the same input by different seeds round it differently, so together they know more of it.
    """

    def __init__(self, grid: Grid, block_size: int, mask_bound: float | None, seed: int) -> None:
        super().__init__(grid, block_size, mask_bound)
        self.seed = seed

    def operand(self, x: Tensor) -> Operand:
        return super().operand(x * signs(x.shape[-1], self.seed, x))

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        return super().values(x * signs(x.shape[-1], self.seed, x), operand)


def signs(count: int, seed: int, like: Tensor) -> Tensor:
    """+-1 of `count` channels, (count,), by mixing the bits of their numbers."""
    mixed = (torch.arange(count, device=like.device) + 0x9E37_79B1 * seed) & 0xFFFF_FFFF
    for factor_, shift in ((0x85EB_CA6B, 13), (0xC2B2_AE35, 16)):
        mixed = ((mixed ^ (mixed >> 15)) * factor_) & 0xFFFF_FFFF
        mixed = mixed ^ (mixed >> shift)
    return (1 - 2 * (mixed & 1)).to(like.dtype)


class SoftSign(DynamicQuantizer):
    """One bit whose gradient is that of k tanh(t u), u = x_h / rms, in the place of a mask (IR-Net, arXiv 1909.10788).

    `sharpness` is t, and k = max(1 / t, 1): at 0.1 nearly every gradient passes, at 10 only those near 0. The recipe
    `sharpen` raises it from one to the other.
    """

    sharpness: Tensor

    def __init__(self, grid: Grid, block_size: int, mask_bound: float | None) -> None:
        super().__init__(grid, block_size, None)
        self.register_buffer("sharpness", torch.tensor(0.1))

    def values(self, x: Tensor, operand: Operand) -> Tensor:
        rotated = ops.hadamard(x, self.block_size)
        t, rms = self.sharpness.to(x.dtype), rotated.detach().square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
        slope = torch.clamp(1 / t, min=1) * t * (1 - torch.tanh(t * rotated.detach() / rms).square())
        passed = rotated * slope
        return ops.operand_values(operand).to(x.dtype) + passed - passed.detach()


def own(kind: type[DynamicQuantizer], *arguments: int) -> FactorSpec:
    """A factor whose quantiser is of the class `kind`, with QuEST's grid and bound."""

    def make(request: Request) -> Quantizer:
        grid = gaussian_grid(request.bits)
        bound = trust_bound(grid, request.block_size > 1, request.trust)
        return kind(grid, request.block_size, bound, *arguments)

    return FactorSpec(ALL_BITS, make)


register_method("quest-leak", variant("with a tenth of the masked gradient", own(LeakyTrust), own(LeakyTrust)))
register_method("quest-soft", variant("with the gradient of a tanh", own(SoftSign), own(SoftSign)))
register_method(
    "quest-blocks",
    variant("with a step for each block of the activations", act=own(BlockScaled), unpackable="steps of blocks"),
)
for number in (1, 2):
    register_method(
        f"quest-signs{number}",
        variant(f"with random signs ({number})", own(Signed, number), own(Signed, number), unpackable="random signs"),
    )


# -- recipes ---------------------------------------------------------------------------


class DenseFirst(recipes.MoreBitsFirst):
    """Trains without quantising for the first share of the budget: `train.first_bits=16`, by the name of its runs."""

    def __init__(self, share: float) -> None:
        super().__init__(16, share)


class MoreBitsFirst(Recipe):
    """As `train.first_bits`, also for one factor alone, and with other bits up to a second share of the budget."""

    def __init__(
        self,
        share: float,
        bits: Bits,
        weights: bool = True,
        acts: bool = True,
        second_share: float = 0.0,
        second_bits: Bits | None = None,
    ) -> None:
        self.stages = [(share, bits), (second_share, second_bits)]
        self.weights, self.acts = weights, acts
        self._own: dict[DynamicQuantizer, tuple[Grid, float | None]] = {}

    def before_step(self, moment: Moment) -> None:
        """Set grid and bound of the mask of all quantisers, or of those of one factor."""
        bits = next((bits for share, bits in self.stages if moment.done < share), None)
        changed = False
        for layer in quantized_layers(moment.model).values():
            for quantizer in (
                layer.act_quantizer if self.acts else None,
                layer.weight_quantizer if self.weights else None,
            ):
                if isinstance(quantizer, DynamicQuantizer):
                    own = self._own.setdefault(quantizer, (quantizer.grid, quantizer.mask_bound))
                    grid = own[0] if bits is None else gaussian_grid(bits)
                    now = own if bits is None else (grid, trust_bound(grid, layer.block_size > 1))
                    if now != (quantizer.grid, quantizer.mask_bound):
                        quantizer.grid, quantizer.mask_bound = now
                        changed = True
        if changed:
            moment.record_again()


class Sharpen(Recipe):
    """Raises the sharpness of all `SoftSign` from 0.1 to 10, by the same factor at equal shares of the budget."""

    def before_step(self, moment: Moment) -> None:
        """Set it."""
        for module in moment.model.modules():
            if isinstance(module, SoftSign):
                module.sharpness.fill_(0.1 * 100**moment.done)


class LogitPenalty(Recipe):
    """Adds weight * mean(log sum exp(logits)^2) to the loss (z-loss of PaLM, arXiv 2204.02311)."""

    adds_loss = True

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def loss(self, inputs: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
        """The penalty, a scalar."""
        return self.weight * logits.float().logsumexp(-1).square().mean()


class AverageWeights(Recipe):
    """Ends with the mean of all weights over the last share of the training, which is then quantised."""

    def __init__(self, share: float) -> None:
        self.share, self.steps = share, 0
        self._mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Take the weights into the mean."""
        if moment.done >= 1 - self.share:
            self.steps += 1
            for name, parameter in moment.model.named_parameters():
                mean = self._mean.setdefault(name, torch.zeros_like(parameter))
                mean.lerp_(parameter, 1 / self.steps)

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        """Put the mean in the place of the weights when the budget is spent."""
        if moment.done >= 1:
            for name, parameter in moment.model.named_parameters():
                if name in self._mean:
                    parameter.copy_(self._mean[name])


class WinQ(Recipe):
    """Pulls weights to their grid every so many steps, w <- w - a (w - Q(w)) (arXiv 2605.17471, without its noise)."""

    def __init__(self, every: int, share: float) -> None:
        self.every, self.share, self.steps = every, share, 0

    def after_step(self, moment: Moment) -> None:
        """Pull, where it is time."""
        self.steps += 1
        if self.steps % self.every == 0:
            pull_to_grid(moment.model, self.share)


class BoundedWeights(Recipe):
    """Keeps rotated weights within a bound in units of their row's rms, so that none is masked for good."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Clamp."""
        for layer in quantized_layers(moment.model).values():
            weight = local_shard(layer.weight)
            rotated = ops.hadamard(weight, layer.block_size)
            most = self.bound * rotated.square().mean(-1, keepdim=True).sqrt()
            weight.copy_(ops.hadamard(torch.clamp(rotated, -most, most), layer.block_size))


register_recipe("dense-first", DenseFirst)
register_recipe("more-bits-first", MoreBitsFirst)
register_recipe("sharpen", Sharpen)
register_recipe("logit-penalty", LogitPenalty)
register_recipe("average-weights", AverageWeights)
register_recipe("winq", WinQ)
register_recipe("bounded-weights", BoundedWeights)
