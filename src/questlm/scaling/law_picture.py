"""A fitted law against runs, as a picture. Needs matplotlib, the extra `plots`.

`draw_curve` shows what of each loss the law puts down to the model, L - B / D^beta, over the effective parameters
N eff: if the law holds, runs of all precisions and all amounts of data lie on one curve. `draw_residuals` shows what is
left over. `quest fit --picture` and `quest report` draw the law by these two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from questlm.humanize import count_text
from questlm.plotting import LIGHT, check_picture, drawing, linear_ticks, log_axis, save_figure
from questlm.scaling.group_styles import GroupStyle, group_styles, marker_style
from questlm.scaling.result import LawFit, Residual
from questlm.scaling.runs import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curve", "draw_fit", "draw_residuals", "fit_figure"]

_HIGHEST_EFFICIENCY = 3.0  # intervals end here in the picture


def draw_fit(fit: LawFit, path: Path) -> None:
    """Draw a law and the runs that it was fitted to, and write the picture as a .png, .svg or .pdf file.

    Raises:
        ConfigError: the name ends in none of .png, .svg and .pdf.
        MissingDependencyError: matplotlib is not installed.
    """
    check_picture(path)
    save_figure(fit_figure(fit), path)


def fit_figure(fit: LawFit) -> Figure:
    """A law and the runs that it was fitted to: the curve, what is left over, and the efficiencies."""
    shown = group_styles(fit.groups)
    with drawing(13, max(4.4, 0.34 * len(fit.groups) + 1.6)) as figure:
        curve, residuals, bars = figure.subplots(1, 3, width_ratios=[1.25, 1.25, 1])
        draw_curve(curve, fit, fit.residuals, shown)
        draw_residuals(residuals, fit.residuals, shown)
        _draw_efficiencies(bars, fit, shown)
    return figure


def draw_curve(axis: Axes, fit: LawFit, runs: Sequence[Residual], shown: Mapping[str, GroupStyle]) -> None:
    """Draw the law over effective parameters, and the runs. The points of group number i have the gid "law-i"."""
    sizes = [run.parameters * fit.efficiency(run.group) for run in runs]
    grid = np.geomspace(min(sizes) / 1.4, max(sizes) * 1.4, 100)
    axis.plot(grid, fit.A / grid**fit.alpha + fit.E, color=LIGHT["muted"], linewidth=1.2, zorder=1)
    for rank, (group, style) in enumerate(shown.items()):
        own = [run for run in runs if run.group == group]
        x = [run.parameters * fit.efficiency(group) for run in own]
        y = [run.loss - fit.B / run.tokens**fit.beta for run in own]
        axis.plot(x, y, gid=f"law-{rank}", zorder=2, **marker_style(style))
    axis.set_title(f"A / (N eff)ᵅ + E,  α = {fit.alpha:.3g},  E = {fit.E:.3g}")
    axis.set_xlabel("effective parameters, N eff")
    axis.set_ylabel("loss − B / Dᵝ, nats a token")
    log_axis(axis, 5, count_text)
    linear_ticks(axis)


def draw_residuals(axis: Axes, runs: Sequence[Residual], shown: Mapping[str, GroupStyle]) -> None:
    """Draw the log residuals over tokens a parameter. The points of group number i have the gid "residual-i"."""
    axis.axhline(0, color=LIGHT["muted"], linewidth=1.2, zorder=1)
    for rank, (group, style) in enumerate(shown.items()):
        own = [run for run in runs if run.group == group]
        x = [run.tokens / run.parameters for run in own]
        axis.plot(x, [100 * run.log_residual for run in own], gid=f"residual-{rank}", zorder=2, **marker_style(style))
    rms = float(np.sqrt(np.mean([run.log_residual**2 for run in runs])))
    axis.set_title(f"Residuals: rms {100 * rms:.2f} % of the loss")
    axis.set_xlabel("tokens a parameter, D / N")
    axis.set_ylabel("100 log(law / measured)")
    log_axis(axis, 5, "{:g}".format)
    most = 1.15 * max(100 * abs(run.log_residual) for run in runs) + 1e-9
    axis.set_ylim(-most, most)


def _draw_efficiencies(axis: Axes, fit: LawFit, shown: Mapping[str, GroupStyle]) -> None:
    groups = sorted(shown, key=lambda group: (group != BASELINE, -fit.efficiency(group)))
    for place, group in enumerate(groups):
        value = 1.0
        if group != BASELINE:
            estimate = fit.eff[group]
            value = estimate.value
            ends = [estimate.low, min(estimate.high, _HIGHEST_EFFICIENCY)]
            axis.plot(ends, [place, place], color=shown[group].color)
        axis.plot([value], [place], **marker_style(shown[group]))
    axis.axvline(1, color=LIGHT["muted"], linewidth=1.0, linestyle=":")
    axis.set_yticks(range(len(groups)), [f"{group}  ({fit.groups[group]})" for group in groups])
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("eff, with 95 % interval")
    axis.set_title("Efficiencies (runs)")
    axis.grid(False, axis="y")
