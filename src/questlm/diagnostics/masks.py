"""Trust masks over training: how many weights receive no gradient, and whether they stay the same ones.

A weight whose quantisation error is larger than rounding can cause receives no gradient (see
`questlm.quant.estimators`). If the rotated weights were Gaussian, a share of erfc(bound / sqrt 2) of them would be
masked. A small share does not show that weights are not stuck: for that, the same weight is compared in two
checkpoints. The Hadamard transform mixes the gradients of its block, so a masked entry of the rotated weight still
moves with every step of the optimizer, which acts on the weight before rotation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from questlm.config.quant import Bits
from questlm.diagnostics.layers import group_by, kind_of, rotate, spread_rows
from questlm.progress import progress
from questlm.quant import fake_quantize, find_method

__all__ = ["gaussian_masked", "mask_history", "trust_bound", "trust_mask"]

JOINT_BINS = 50
JOINT_MAX = 5.0  # in rms; larger values are counted in the last bin
HOW_TO_KEEP_MORE = (
    "keep more checkpoints while training, such as with "
    "--set train.checkpoint_every=200 --set train.keep_checkpoints=12"
)
_PROBE_ROW = 4096


def trust_mask(x: Tensor, method: str, bits: Bits, block_size: int = 128) -> Tensor:
    """Return which entries of the weight `x` (rows, K) pass their gradient: bool (rows, K), in the rotated domain.

    It is read from the gradient of `fake_quantize` itself, so it is what training does, for any method.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        values = fake_quantize(leaf, method=method, bits=bits, block_size=block_size)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return rotate(gradient, method, block_size) > 0.5  # the gradient is IHT(mask)


@cache
def trust_bound(method: str, bits: Bits) -> float | None:
    """Return |x_h| / rms beyond which `method` stops the gradient, by bisection to 1e-6; None if it never does."""
    low, high = 0.0, 16.0
    if _passes(high, method, bits):
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _passes(middle, method, bits) else (low, middle)
    return (low + high) / 2


def _passes(value: float, method: str, bits: Bits) -> bool:
    """Return whether an entry of `value` rms gets its gradient, in a row whose other entries make its rms 1."""
    rest = math.sqrt((_PROBE_ROW - value**2) / (_PROBE_ROW - 1))
    row = torch.full((1, _PROBE_ROW), rest)
    row[0, 0] = value
    return bool(trust_mask(rotate(row, method), method, bits)[0, 0])


def gaussian_masked(method: str, bits: Bits) -> float:
    """Return the share of N(0, 1) that `method` masks: erfc(bound / sqrt 2)."""
    bound = trust_bound(method, bits)
    return 0.0 if bound is None else math.erfc(bound / math.sqrt(2))


def mask_history(
    snapshots: Iterable[tuple[int, Mapping[str, Tensor]]],
    count: int,
    method: str,
    bits: Bits,
    block_size: int = 128,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Measure the share of masked weights in each checkpoint, and their persistence to the next one.

    Args:
        snapshots: (step, {layer name: weight (out, in)}) in order of steps; read one at a time.
        count: number of snapshots, for the progress bar.
        method, bits, block_size: how the weights are quantised.
        show_progress: whether to show a progress bar.

    Returns:
        {"method", "rotated", "bits", "bound", "gaussian", "checkpoints": [...], "persistence": {...}}. A checkpoint is
            {"step", "masked": share of all entries, "by_kind"}. Persistence holds "pairs" of neighbouring checkpoints
            (see `_compare`), or the reason why it was "skipped".
    """
    checkpoints: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    before: tuple[int, dict[str, Tensor], dict[str, Tensor]] | None = None
    with progress("trust masks", count, show_progress) as update:
        for step, weights in snapshots:
            rows = {name: spread_rows(weight.detach().float()) for name, weight in weights.items()}
            masked = {name: ~trust_mask(x, method, bits, block_size) for name, x in rows.items()}
            sizes = {name: _normalised(x, method, block_size) for name, x in rows.items()}
            checkpoints.append({"step": step, **_shares(masked)})
            if before is not None:
                pairs.append({"from": before[0], "to": step, **_compare(before[1], masked, before[2], sizes)})
            before = (step, masked, sizes)
            update(len(checkpoints))
    return {
        "method": method,
        "rotated": find_method(method).rotates,
        "bits": bits,
        "bound": trust_bound(method, bits),
        "gaussian": gaussian_masked(method, bits),
        "checkpoints": checkpoints,
        "persistence": _persistence(pairs, len(checkpoints)),
    }


def _persistence(pairs: list[dict[str, Any]], count: int) -> dict[str, Any]:
    if not pairs:
        kept = f"{count} checkpoint" + "s" * (count != 1)
        reason = f"the persistence of masks needs two checkpoints and this run kept {kept}"
        return {"skipped": f"{reason}; {HOW_TO_KEEP_MORE}"}
    for pair in pairs[1:-1]:  # keep one picture of early and one of late training
        del pair["joint"]
    return {"pairs": pairs, "joint_max": JOINT_MAX}


def _normalised(x: Tensor, method: str, block_size: int) -> Tensor:
    """Return |x_h| / rms of every row; rows of zeros stay zero."""
    rotated = rotate(x, method, block_size)
    return (rotated / rotated.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-30)).abs()


def _shares(masked: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the share of masked entries of all layers together and by kind."""
    return {
        "masked": _ratio(_pooled(masked, list(masked))),
        "by_kind": {kind: _ratio(_pooled(masked, names)) for kind, names in group_by(masked, kind_of).items()},
    }


def _compare(
    then: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    size_then: Mapping[str, Tensor],
    size_now: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Compare two checkpoints entry by entry.

    Returns:
        {"masked_if_masked": P(masked now | masked then), "masked_if_passing": P(masked now | not masked then),
        "by_kind": the same by kind, "joint": counts of (|x_h|/rms then, now) in JOINT_BINS bins each up to JOINT_MAX}.
    """

    def conditional(names: list[str]) -> dict[str, float | None]:
        old, new = _pooled(then, names), _pooled(now, names)
        return {"masked_if_masked": _ratio(new[old]), "masked_if_passing": _ratio(new[~old])}

    by_kind = {kind: conditional(names) for kind, names in group_by(now, kind_of).items()}
    joint = sum((_joint(size_then[name], size_now[name]) for name in now), torch.zeros(JOINT_BINS, JOINT_BINS))
    return {**conditional(list(now)), "by_kind": by_kind, "joint": joint.long().tolist()}


def _joint(then: Tensor, now: Tensor) -> Tensor:
    """Count entries (JOINT_BINS, JOINT_BINS): rows by the old value, columns by the new."""
    a, b = ((x.flatten() * (JOINT_BINS / JOINT_MAX)).long().clamp_max(JOINT_BINS - 1) for x in (then, now))
    counts = torch.bincount(a * JOINT_BINS + b, minlength=JOINT_BINS**2)
    return counts.reshape(JOINT_BINS, JOINT_BINS).cpu()


def _pooled(tensors: Mapping[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in names])


def _ratio(flags: Tensor) -> float | None:
    """Return the share of true entries; None of no entries."""
    return float(flags.double().mean()) if flags.numel() else None
