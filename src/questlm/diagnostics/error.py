"""Quantisation error of each layer, compared with the error of the grid on Gaussian rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from questlm.config import QuantSpec
from questlm.config.quant import Bits
from questlm.diagnostics.layers import rotate, spread_rows
from questlm.quant import fake_quantize, gaussian_mse

__all__ = ["METHODS", "error_by_layer", "relative_error"]

METHODS = ("quest-noht", "quest")
"""The same grid, without and with the Hadamard transform in front of it."""


@torch.no_grad()
def relative_error(
    x: Tensor, method: str, bits: Bits, role: Literal["weight", "activation"], block_size: int = 128
) -> float | None:
    """Return the relative squared error ||x_q - x_h||^2 / ||x_h||^2 of quantising `x` (rows, K).

    x_h is `x` after the method's Hadamard transform, if it has one, and x_q is x_h quantised. None where `x` is all
    zeros.
    """
    exact = rotate(x, method, block_size).double()
    rounded = fake_quantize(x, method=method, bits=bits, role=role, block_size=block_size).double()
    total = float(exact.square().sum())
    return float((rounded - exact).square().sum()) / total if total > 0 else None


def error_by_layer(
    weights: Mapping[str, Tensor],
    activations: Mapping[str, Tensor],
    spec: QuantSpec,
    methods: Sequence[str] = METHODS,
) -> dict[str, Any]:
    """Measure `relative_error` of every layer's weight (out, in) and input (tokens, in).

    Returns:
        {"weights": {"bits", "gaussian": error on N(0, 1), "layers": {layer: {method: error}}}, "activations": the
        same, or None where `spec` leaves activations in 16 bits}.
    """
    return {
        "weights": _errors(weights, spec.weight_bits, "weight", spec.block_size, methods),
        "activations": _errors(activations, spec.act_bits, "activation", spec.block_size, methods),
    }


def _errors(
    tensors: Mapping[str, Tensor],
    bits: Bits,
    role: Literal["weight", "activation"],
    block_size: int,
    methods: Sequence[str],
) -> dict[str, Any] | None:
    if bits == 16:
        return None
    rows = {name: spread_rows(x.detach().float()) for name, x in tensors.items()}
    return {
        "bits": bits,
        "gaussian": gaussian_mse(bits),
        "layers": {
            name: {method: relative_error(x, method, bits, role, block_size) for method in methods}
            for name, x in rows.items()
        },
    }
