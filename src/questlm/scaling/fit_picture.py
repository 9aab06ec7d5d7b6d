"""A fitted law against its runs, as a picture. Needs matplotlib, the extra `plots`.

Left: what of each loss the law puts down to the model, L - B / D^beta, over the effective parameters N eff: if the law
holds, runs of all precisions and all amounts of data lie on one curve. Middle: the residuals. Right: the efficiencies.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from questlm.readable import count_text
from questlm.scaling.picture import check_picture, label, picture
from questlm.scaling.result import LawFit, Residual
from questlm.scaling.runs import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_fit"]

# Okabe and Ito's colours, with markers beside them for when there are more groups than colours.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX*<>"
_GREY = "#767676"


def draw_fit(fit: LawFit, path: Path) -> None:
    """Write the picture; its form follows from the name.

    Raises:
        ConfigError: a name of no known form.
        MissingDependencyError: matplotlib is not installed.
    """
    check_picture(path)
    with picture(path, 13, max(4.4, 0.34 * len(fit.groups) + 1.6)) as figure:
        curve, residuals, bars = figure.subplots(1, 3, width_ratios=[1.25, 1.25, 1])
        looks = {group: _look(number) for number, group in enumerate(_ordered(fit))}
        _draw_curve(curve, fit, looks)
        _draw_residuals(residuals, fit, looks)
        _draw_efficiencies(bars, fit, looks)


def _ordered(fit: LawFit) -> list[str]:
    """BF16, then the others from the most efficient on."""
    return sorted(fit.groups, key=lambda group: (group != BASELINE, -fit.efficiency(group)))


def _look(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def _runs(fit: LawFit, group: str) -> list[Residual]:
    return [run for run in fit.residuals if run.group == group]


def _draw_curve(axes: Axes, fit: LawFit, looks: dict[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    sizes = [run.parameters * fit.efficiency(run.group) for run in fit.residuals]
    grid = np.geomspace(min(sizes) / 1.4, max(sizes) * 1.4, 100)
    axes.plot(grid, fit.A / grid**fit.alpha + fit.E, color=_GREY, linewidth=1.4, zorder=1)
    for group, look in looks.items():
        x = [run.parameters * fit.efficiency(group) for run in _runs(fit, group)]
        y = [run.loss - fit.B / run.tokens**fit.beta for run in _runs(fit, group)]
        axes.scatter(x, y, s=32, linewidths=0.5, edgecolors="white", **look)
    axes.set(xscale="log", yscale="log", xlabel="effective parameters, N eff", ylabel="loss − B / D$^β$, nats a token")
    axes.set_title(f"The law: A / (N eff)$^α$ + E,  α = {fit.alpha:.3g},  E = {fit.E:.3g}", loc="left")
    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))


def _draw_residuals(axes: Axes, fit: LawFit, looks: dict[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator

    axes.axhline(0, color=_GREY, linewidth=1.2)
    for group, look in looks.items():
        x = [run.tokens / run.parameters for run in _runs(fit, group)]
        axes.scatter(
            x, [100 * run.log_residual for run in _runs(fit, group)], s=32, linewidths=0.5, edgecolors="white", **look
        )
    axes.set(xscale="log", xlabel="tokens a parameter, D / N", ylabel="predicted over measured loss, %")
    axes.set_title(f"Residuals: rms {100 * fit.rms_log_residual:.2f} % of the loss", loc="left")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    most = 1.15 * max(100 * abs(run.log_residual) for run in fit.residuals)
    axes.set_ylim(-most, most)


def _draw_efficiencies(axes: Axes, fit: LawFit, looks: dict[str, dict[str, Any]]) -> None:
    groups = list(looks)
    for place, group in enumerate(groups):
        if group == BASELINE:
            axes.plot([1], [place], markersize=6, linestyle="none", **looks[group])
            continue
        estimate = fit.eff[group]
        ends = [estimate.low, min(estimate.high, 3.0)]
        axes.plot(ends, [place, place], color=looks[group]["color"], linewidth=1.6)
        axes.plot([estimate.value], [place], markersize=6, linestyle="none", **looks[group])
    axes.axvline(1, color=_GREY, linewidth=1.0, linestyle=":")
    axes.set_yticks(range(len(groups)), [f"{label(group)}  ({fit.groups[group]})" for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("eff, with 95 % interval")
    axes.set_title("Efficiencies (runs)", loc="left")
    axes.grid(False, axis="y")
