"""How close to Gaussian rows are before and after the Hadamard transform.

The grid is optimal for N(0, 1), so it fits a row as well as the row, divided by its rms, is Gaussian. Moments are taken
about zero and not about the mean, because the grid is symmetric about zero: a row with a large mean fits as badly as
one with outliers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from questlm.diagnostics.layers import MAX_ROWS, spread_rows, unit_rows
from questlm.ops import hadamard

__all__ = ["GAUSSIAN_BEYOND", "gaussian_row_maximum", "normality", "normality_by_layer"]

FAR = 4.0
GAUSSIAN_BEYOND = math.erfc(FAR / math.sqrt(2))
"""Share of N(0, 1) beyond four standard deviations: 6.3e-5."""

_HISTOGRAM_MAX, _HISTOGRAM_BINS = 8.0, 128
_QUANTILES = [i / 20 for i in range(-80, 81)]  # in standard deviations


def normality(x: Tensor) -> dict[str, float]:
    """Measure how Gaussian the rows `x` (rows, K) are; no measure depends on the scale of a row.

    Returns:
        "excess_kurtosis": E[z^4] - 3 for z = x / rms(row), 0 for a Gaussian;
        "max_over_rms": max|z| of a row, median over rows, and "largest_over_rms", over all of them;
        "beyond": share of |z| > 4, in units of the Gaussian share. All 0 where every row is zero.
    """
    z = unit_rows(x.float())
    if not len(z):
        return dict.fromkeys(("excess_kurtosis", "max_over_rms", "largest_over_rms", "beyond"), 0.0)
    peaks = z.abs().amax(dim=-1)
    return {
        "excess_kurtosis": float(z.double().pow(4).mean()) - 3,
        "max_over_rms": float(peaks.median()),
        "largest_over_rms": float(peaks.max()),
        "beyond": float((z.abs() > FAR).double().mean()) / GAUSSIAN_BEYOND,
    }


def gaussian_row_maximum(length: int) -> float:
    """Return the median of max|z| over `length` independent N(0, 1): `max_over_rms` of Gaussian rows."""
    return NormalDist().inv_cdf((1 + 0.5 ** (1 / length)) / 2)


def normality_by_layer(
    weights: Mapping[str, Tensor], activations: Mapping[str, Tensor], block_size: int = 128
) -> dict[str, Any]:
    """Measure `normality` of every layer's weight (out, in) and input (tokens, in), before and after the transform.

    Returns:
        {"weights": {layer: {"before", "after", "row_length"}}, "activations": the same,
        "worst": {"weights": picture of the layer of highest kurtosis, before or after, "activations": the same}}.
    """
    result: dict[str, Any] = {}
    worst: dict[str, Any] = {}
    for role, tensors in {"weights": weights, "activations": activations}.items():
        rows = {name: spread_rows(x.detach().float(), MAX_ROWS) for name, x in tensors.items()}
        result[role] = {
            name: {
                "before": normality(x),
                "after": normality(hadamard(x, block_size)),
                "row_length": x.shape[-1],
            }
            for name, x in rows.items()
        }
        name = _least_gaussian(result[role])
        worst[role] = {"layer": name, **_picture(rows[name], block_size)}
    return {**result, "worst": worst}


def _least_gaussian(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the layer of highest kurtosis, before or after the transform."""
    stages = ("before", "after")
    return max(measured, key=lambda name: max(measured[name][stage]["excess_kurtosis"] for stage in stages))


def _picture(x: Tensor, block_size: int) -> dict[str, Any]:
    """Return densities and quantiles of x / rms before and after the transform."""
    stages = {"before": x, "after": hadamard(x, block_size)}
    return {
        "edges": [-_HISTOGRAM_MAX, _HISTOGRAM_MAX],
        "density": {stage: _density(unit_rows(rows)) for stage, rows in stages.items()},
        "gaussian_quantiles": _QUANTILES,
        "quantiles": {stage: _quantiles(unit_rows(rows)) for stage, rows in stages.items()},
    }


def _density(z: Tensor) -> list[float]:
    """Return the density in equal bins on [-8, 8]; values outside are not drawn but count in the total."""
    counts = torch.histc(z.cpu(), _HISTOGRAM_BINS, -_HISTOGRAM_MAX, _HISTOGRAM_MAX)
    width = 2 * _HISTOGRAM_MAX / _HISTOGRAM_BINS
    values: list[float] = (counts / (max(z.numel(), 1) * width)).tolist()
    return values


def _quantiles(z: Tensor) -> list[float]:
    """Return sample quantiles at the probabilities of _QUANTILES."""
    ordered = z.flatten().sort().values
    if not len(ordered):
        return [0.0] * len(_QUANTILES)
    probabilities = torch.tensor([NormalDist().cdf(q) for q in _QUANTILES], dtype=torch.float64)
    values: list[float] = ordered[(probabilities * (len(ordered) - 1)).round().long().to(ordered.device)].tolist()
    return values
