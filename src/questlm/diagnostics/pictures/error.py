"""The squared error of rounding, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from questlm.diagnostics.pictures.shared import BLACK, bits, by_depth, legend_of_kinds, titled_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["error"]


def error(result: Mapping[str, Any]) -> Figure:
    """Draw the relative squared error of rounding weights and activations, by block, with the transform and without."""
    from matplotlib.ticker import LogLocator

    errors = {role: value for role, value in result["error"].items() if value is not None}
    errors = {role: errors[role] for role in ("weights", "activations") if role in errors}
    size = (1.2 + 5.0 * len(errors), 4.2)
    figure, axes = titled_figure(1, len(errors), size, "Relative squared error of rounding", result, sharey=True)
    for axis, (role, error) in zip(axes[0], errors.items(), strict=True):
        for method, filled in (("quest-noht", False), ("quest", True)):
            by_depth(axis, {name: values[method] for name, values in error["layers"].items()}, filled)
        axis.axhline(error["gaussian"], color=BLACK, linestyle=":", label="Gaussian")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_title(f"{role}, {bits(error['bits'])}")
        axis.set_xlabel("block")
        legend_of_kinds(axis, error["layers"], {"without HT": False, "with HT": True})
    axes[0][0].set_ylabel("‖x_q − x‖² / ‖x‖²")
    return figure
