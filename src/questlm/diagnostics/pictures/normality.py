"""How Gaussian the rows of weights and activations are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questlm.diagnostics.normality import gaussian_row_maximum
from questlm.diagnostics.pictures.shared import (
    BLACK,
    GREY,
    STAGES,
    by_depth,
    legend_below,
    legend_of_kinds,
    rotated,
    titled_figure,
)
from questlm.plotting import decade_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["normality", "worst"]


def normality(result: Mapping[str, Any]) -> Figure:
    """Draw kurtosis, largest entry and tails of rows by block, before and after the transform."""
    measures = {
        "excess_kurtosis": ("kurtosis", "excess kurtosis"),
        "max_over_rms": ("largest entry of a row", "max|x| / rms, median row"),
        "beyond": ("tails", "share beyond 4 rms / Gaussian's"),
    }
    figure, axes = titled_figure(
        2, 3, (11.6, 6.4), "How Gaussian rows are before and after the Hadamard transform", result
    )
    for row, role in zip(axes, ("weights", "activations"), strict=True):
        layers = result["normality"][role]
        for axis, (key, (title, label)) in zip(row, measures.items(), strict=True):
            for stage in STAGES:
                values = {name: layer[stage][key] for name, layer in layers.items()}
                by_depth(axis, values, filled=stage == "after")
            axis.set_title(f"{role}: {title}")
            axis.set_ylabel(label)
        _gaussian_lines(row, layers)
        legend_of_kinds(row[-1], layers, {"before HT": False, "after HT": True})
    for axis in axes[-1]:
        axis.set_xlabel("block")
    return figure


def _gaussian_lines(row: Sequence[Axes], layers: Mapping[str, Any]) -> None:
    """What Gaussian rows would measure; scales that are linear near it and logarithmic far from it."""
    row[0].axhline(0, color=BLACK, linestyle=":")
    for length in sorted({layer["row_length"] for layer in layers.values()}):
        row[1].axhline(gaussian_row_maximum(length), color=BLACK, linestyle=":")
    row[2].axhline(1, color=BLACK, linestyle=":")
    for axis in (row[0], row[2]):
        if axis.get_ylim()[1] > 3:
            axis.set_yscale("symlog", linthresh=1)
            axis.autoscale(axis="y")
        axis.yaxis.set_major_formatter("{x:g}")
    row[2].set_ylim(bottom=0)


def worst(result: Mapping[str, Any]) -> Figure:
    """Draw histogram and quantiles of the weights and the inputs that are least Gaussian."""
    figure, axes = titled_figure(
        2, 2, (9.0, 6.8), "The layers least Gaussian, before or after the Hadamard transform", result
    )
    for row, role in zip(axes, ("weights", "activations"), strict=True):
        picture = result["normality"]["worst"][role]
        measured = result["normality"][role][picture["layer"]]
        _histogram(row[0], picture, _weight_bound(result) if role == "weights" else None)
        _quantile_plot(row[1], picture)
        name = f"{'weights' if role == 'weights' else 'inputs'} of {picture['layer']}"
        before, after = (measured[stage]["excess_kurtosis"] for stage in STAGES)
        row[0].set_title(f"{name}: histogram")
        row[1].set_title(f"quantiles (kurtosis {before:+.2f} → {after:+.2f})")
    legend_below(figure, axes[0][0])
    return figure


def _weight_bound(result: Mapping[str, Any]) -> float | None:
    """Trust bound on rotated weights, where the mask shown is taken on these."""
    masks = result["masks"]
    bound: float | None = masks["bound"] if rotated(masks) else None
    return bound


def _histogram(axis: Axes, picture: Mapping[str, Any], bound: float | None) -> None:
    low, high = picture["edges"]
    for stage, (label, color) in STAGES.items():
        density = picture["density"][stage]
        width = (high - low) / len(density)
        edges = [low + i * width for i in range(len(density) + 1)]
        values = [value or math.nan for value in density]
        axis.stairs(values, edges, baseline=None, color=color, label=label, linewidth=1.4)
    grid = [low + (high - low) * i / 400 for i in range(401)]
    axis.plot(
        grid, [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in grid],
        color=BLACK, linestyle=":", label="Gaussian",
    )  # fmt: skip
    if bound is not None:
        axis.axvline(-bound, color=GREY, linestyle="--", linewidth=1.1, label="trust bound on weights after HT")
        axis.axvline(bound, color=GREY, linestyle="--", linewidth=1.1)
    axis.set_yscale("log")
    decade_ticks(axis.yaxis)
    axis.set_ylim(bottom=1e-6)
    axis.set_xlabel("x / rms")
    axis.set_ylabel("density")


def _quantile_plot(axis: Axes, picture: Mapping[str, Any]) -> None:
    gaussian = picture["gaussian_quantiles"]
    axis.plot([-4, 4], [-4, 4], color=BLACK, linestyle=":")
    for stage, (_, color) in STAGES.items():
        axis.plot(gaussian, picture["quantiles"][stage], color=color, marker="o", markersize=2.2, linewidth=1.0)
    axis.set_xlabel("quantile of a Gaussian")
    axis.set_ylabel("quantile of x / rms")
