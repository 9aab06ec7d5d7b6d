"""Select what the diagnostics measure: the layers that a method quantises, their weights and inputs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from questlm.config import QuantSpec
from questlm.quant import fake_quantize, prepare, quantized_layers, restore
from questlm.quant.swap import unfused

__all__ = [
    "Batch",
    "block_of",
    "capture_inputs",
    "group_by",
    "kind_of",
    "layer_names",
    "mean_and_std",
    "prepared",
    "rotate",
    "spread_rows",
    "unit_rows",
    "weights_of",
]

K = TypeVar("K", int, str)

Batch = tuple[Tensor, Tensor]
"""Inputs and targets: token ids, int64, each (sequences, tokens)."""

MAX_ROWS = 1024
"""Rows of a layer (output channels, or tokens) that are looked at; of longer ones, this many evenly spaced."""


def kind_of(name: str) -> str:
    """Return the last part of a layer's dotted name, its role in the block ('layers.3.attention.q' -> 'q')."""
    return name.rpartition(".")[2]


def block_of(name: str) -> int:
    """Return the index of a layer's block: the first number in its dotted name, or 0."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)


def group_by(names: Iterable[str], key: Callable[[str], K]) -> dict[K, list[str]]:
    """Group names by `key`, in order of first appearance."""
    groups: dict[K, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


@contextmanager
def prepared(model: nn.Module, spec: QuantSpec) -> Iterator[nn.Module]:
    """Quantise the plain `model` by `spec` inside the `with` block, and restore it at its end."""
    prepare(model, spec)
    try:
        yield model
    finally:
        restore(model)


def layer_names(model: nn.Module, spec: QuantSpec) -> list[str]:
    """Return the dotted names of the layers of a plain `model` that `spec` quantises."""
    with prepared(model, spec):
        return list(quantized_layers(model))


def weights_of(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights (out, in) of the named layers."""
    return {name: model.get_parameter(f"{name}.weight").detach() for name in names}


@torch.no_grad()
def capture_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], max_rows: int = MAX_ROWS
) -> dict[str, Tensor]:
    """Record the inputs of the named layers while `model` reads `batches`.

    Returns:
        (rows, in_features) float32 by layer: at most `max_rows` tokens, evenly spaced within each batch and the same
        tokens for every layer.
    """
    captured: dict[str, list[Tensor]] = {name: [] for name in names}
    share = max(1, max_rows // len(batches))

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: captured[name].append(spread_rows(inputs[0].flatten(0, -2).float(), share))

    hooks = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        with unfused(model):
            for inputs, _ in batches:
                model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in captured.items()}


def spread_rows(x: Tensor, count: int = MAX_ROWS) -> Tensor:
    """Return at most `count` rows of `x` (rows, K), evenly spaced."""
    if len(x) <= count:
        return x
    return x[torch.linspace(0, len(x) - 1, count, device=x.device).round().long()]


def rotate(x: Tensor, method: str, block_size: int = 128) -> Tensor:
    """Rotate `x` (rows, K) to the domain where `method` rounds, if it has a Hadamard transform. Self-inverse."""
    return fake_quantize(x, method=method, bits=16, block_size=block_size)


def unit_rows(x: Tensor) -> Tensor:
    """Divide each row of `x` (rows, K) by its rms, as quantising does; rows of zeros are left out."""
    rms = x.square().mean(dim=-1, keepdim=True).sqrt()
    alive = rms.squeeze(-1) > 0
    return x[alive] / rms[alive]


def mean_and_std(values: Sequence[float | None]) -> Mapping[str, float | None]:
    """Return mean and sample standard deviation (None for fewer than two) of the values that are not None."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }
