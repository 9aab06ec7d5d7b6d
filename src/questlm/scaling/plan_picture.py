"""How a plan moves with memory and with data, as a picture. Needs matplotlib, the extra `plots`.

Left: at the plan's memory, what each precision loses to the best one, over training tokens a parameter. Right: the
predicted loss over the bytes of the packed model, at the plan's amount of training, for each precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from questlm.humanize import bytes_text, count_text
from questlm.plotting import LIGHT, check_picture, drawing, log_axis, save_figure
from questlm.scaling.group_styles import GroupStyle, group_styles, marker_style
from questlm.scaling.limits import Limits
from questlm.scaling.plan import Choice, Plan, best_shapes
from questlm.scaling.result import LawFit
from questlm.scaling.runs import bits_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_plan", "frontier", "over_data", "plan_figure"]

_RATIOS = np.geomspace(1, 3000, 29)  # tokens a parameter
_SPAN = np.geomspace(1 / 32, 32, 31)  # of the plan's memory


def over_data(fit: LawFit, limits: Limits, groups: Sequence[str]) -> list[dict[str, Choice]]:
    """Return the best shape of each group, for each of a range of tokens per parameter, within the limits on memory."""
    amounts = [replace(limits, tokens=None, flops=None, gpu_hours=None, tokens_per_parameter=float(r)) for r in _RATIOS]
    return [_by_group(fit, each, groups) for each in amounts]


def frontier(fit: LawFit, limits: Limits, groups: Sequence[str], around: float) -> list[dict[str, Choice]]:
    """Return the best shape of each group, for each of a range of memories about `around` bytes."""
    return [_by_group(fit, replace(limits, memory=float(around * f), latency=None), groups) for f in _SPAN]


def draw_plan(fit: LawFit, limits: Limits, plan: Plan, path: Path) -> None:
    """Draw how the plan moves with memory and with data, and write the picture as a .png, .svg or .pdf file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ConfigError: the name ends in none of these.
    """
    check_picture(path)
    save_figure(plan_figure(fit, limits, plan), path)


def plan_figure(fit: LawFit, limits: Limits, plan: Plan) -> Figure:
    """How a plan moves with data, and with memory."""
    groups = [choice.group for choice in sorted(plan.choices, key=_bits)]
    memory = limits.memory or float(plan.best.bytes)
    shown = group_styles(dict.fromkeys(groups, 1))
    with drawing(11, 4.8) as figure:
        left, right = figure.subplots(1, 2)
        _draw_over_data(left, fit, replace(limits, memory=memory), groups, shown)
        _draw_frontier(right, fit, limits, groups, shown, memory, plan)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _bits(choice: Choice) -> tuple[float, float]:
    """For the order of the legend."""
    return bits_of(choice.quant.weight_bits), bits_of(choice.quant.act_bits)


def _line(style: GroupStyle) -> dict[str, Any]:
    return marker_style(style) | {"color": style.color, "linestyle": "-", "markersize": 4.5}


def _by_group(fit: LawFit, limits: Limits, groups: Sequence[str]) -> dict[str, Choice]:
    return {choice.group: choice for choice in best_shapes(fit, limits, groups)}


def _draw_over_data(
    axes: Axes, fit: LawFit, limits: Limits, groups: Sequence[str], shown: dict[str, GroupStyle]
) -> None:
    points = over_data(fit, limits, groups)
    for group in groups:
        line = [
            (ratio, at[group].loss - min(choice.loss for choice in at.values()))
            for ratio, at in zip(_RATIOS, points, strict=True)
            if group in at
        ]
        axes.plot(*zip(*line, strict=True), markevery=7, label=group, **_line(shown[group]))
    low, high = fit.range["tokens_per_parameter"]
    axes.axvspan(low, high, color=LIGHT["front"], alpha=0.15, linewidth=0)
    axes.set(xlabel="training tokens a parameter (grey: fitted)", ylabel="predicted loss over the best's, nats")
    log_axis(axes, 8, "{:,g}".format)
    axes.set_ylim(-0.01, 0.5)
    axes.set_title(f"Which precision, in {bytes_text(limits.memory or math.nan)}")


def _draw_frontier(
    axes: Axes,
    fit: LawFit,
    limits: Limits,
    groups: Sequence[str],
    shown: dict[str, GroupStyle],
    memory: float,
    plan: Plan,
) -> None:
    points = frontier(fit, limits, groups, memory)
    for group in groups:
        line = [at[group] for at in points if group in at]
        size = [choice.bytes / 1e6 for choice in line]
        axes.plot(size, [choice.loss for choice in line], color=shown[group].color, linestyle=":")
        fitted = [choice.loss if not choice.outside else math.nan for choice in line]
        axes.plot(size, fitted, markevery=4, **_line(shown[group]))
        if group == plan.best.group:
            axes.fill_between(
                size, [c.low for c in line], [c.high for c in line], color=shown[group].color, alpha=0.15, lw=0
            )
    losses = [choice.loss for at in points for choice in at.values()]
    axes.set_ylim(min(losses) - 0.1, max(losses) + 0.1)
    best = plan.best
    axes.plot(best.bytes / 1e6, best.loss, "o", markersize=9, color=shown[best.group].color)
    axes.set(
        xlabel="packed model, MB (dotted: outside what was fitted; band: 95 %)",
        ylabel="predicted loss, nats a token",
    )
    log_axis(axes, 8, "{:,g}".format)
    axes.set_title(f"Loss over bytes; the dot: {count_text(best.model.block_parameters)} in {best.group}")
