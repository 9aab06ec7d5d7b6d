"""Which weights get no gradient, how many and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questlm.diagnostics.pictures.shared import (
    BLACK,
    BLUE,
    GREY,
    RED,
    kind_rank,
    kind_style,
    legend_below,
    number,
    numbers,
    percent,
    rotated,
    titled_figure,
    whole_ticks,
)
from questlm.plotting import LIGHT, decade_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["mask_share", "persistence"]


def mask_share(result: Mapping[str, Any]) -> Figure:
    """Draw the share of masked weights over the checkpoints, for each kind of layer."""
    masks = result["masks"]
    points = masks["checkpoints"]
    figure, axes = titled_figure(1, 1, (6.8, 3.9), "Weights whose gradient the trust estimator stops", result)
    axis = axes[0][0]
    steps = [point["step"] for point in points]
    for kind in sorted(points[0]["by_kind"], key=kind_rank):
        color, marker = kind_style(kind)
        shares = numbers(point["by_kind"][kind] for point in points)
        axis.plot(steps, percent(shares), color=color, marker=marker, label=kind, linewidth=1.1, markersize=4.5)
    axis.plot(steps, percent(numbers(p["masked"] for p in points)), color=GREY, linewidth=3, label="all", zorder=1)
    axis.axhline(100 * masks["gaussian"], color=BLACK, linestyle=":", label=f"Gaussian, {masks['gaussian']:.2%}")
    axis.set_xlabel("training step")
    axis.set_ylabel("masked weights (%)")
    axis.set_ylim(bottom=0)
    whole_ticks(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def persistence(result: Mapping[str, Any]) -> Figure | None:
    """Draw whether weights that are masked at one checkpoint are masked at the next; None with one checkpoint alone."""
    masks = result["masks"]
    pairs = masks["persistence"].get("pairs")
    if not pairs:
        return None
    maps = pairs if len(pairs) == 1 else [pairs[0], pairs[-1]]
    size = (0.8 + 3.7 * (1 + len(maps)), 4.3)
    figure, axes = titled_figure(1, 1 + len(maps), size, "Do masked weights stay masked?", result)
    _conditionals(axes[0][0], pairs, masks["gaussian"])
    highest = max(max(map(max, pair["joint"])) for pair in maps)
    for axis, pair in zip(axes[0][1:], maps, strict=True):
        image = _heat_map(axis, pair, masks, highest)
    bar = figure.colorbar(image, ax=axes[0][1:], pad=0.02, aspect=28)
    decade_ticks(bar.ax.yaxis)
    bar.set_label("weights (outermost bin: and beyond)")
    legend_below(figure, axes[0][0])
    return figure


def _conditionals(axis: Axes, pairs: Sequence[Mapping[str, Any]], gaussian: float) -> None:
    """P(masked) after having been masked, or not, at the checkpoint before."""
    steps = [pair["to"] for pair in pairs]
    for key, label, color, marker in (
        ("masked_if_masked", "masked a checkpoint ago", RED, "o"),
        ("masked_if_passing", "not masked a checkpoint ago", BLUE, "s"),
    ):
        kinds = [[number(values[key]) for values in pair["by_kind"].values()] for pair in pairs]
        axis.fill_between(steps, [min(k) for k in kinds], [max(k) for k in kinds], color=color, alpha=0.18, linewidth=0)
        axis.plot(steps, numbers(pair[key] for pair in pairs), color=color, marker=marker, label=label)
    axis.axhline(gaussian, color=BLACK, linestyle=":", label="drawn afresh (Gaussian)")
    axis.set_yscale("log")
    decade_ticks(axis.yaxis)
    axis.set_ylim(top=1.3)
    axis.set_title("masked now")
    axis.set_xlabel("training step")
    axis.set_ylabel("probability (band: kinds of layers)")
    axis.set_box_aspect(1)
    whole_ticks(axis)


def _heat_map(axis: Axes, pair: Mapping[str, Any], masks: Mapping[str, Any], highest: float) -> Any:
    """Joint histogram of a weight's size at two checkpoints."""
    import numpy as np
    from matplotlib.colors import LogNorm

    edge = masks["persistence"]["joint_max"]
    counts = np.array(pair["joint"], dtype=float).T  # x is then, y is now
    image = axis.imshow(
        np.where(counts > 0, counts, np.nan), origin="lower", extent=(0, edge, 0, edge), cmap="viridis",
        norm=LogNorm(1, max(2.0, highest)), interpolation="nearest",
    )  # fmt: skip
    if masks["bound"] is not None:
        for line in (axis.axvline, axis.axhline):
            line(masks["bound"], color=RED, linewidth=1.2, linestyle="--")
        axis.text(
            masks["bound"] - 0.06, 0.06, "trust bound", color=RED, rotation=90, ha="right", va="bottom",
            fontsize=8.5, bbox={"facecolor": LIGHT["card"], "alpha": 0.8, "linewidth": 0, "pad": 1.0},
        )  # fmt: skip
    axis.grid(False)
    what = "rotated weights" if rotated(masks) else "weights"
    axis.set_title(f"{what}, step {pair['from']} to {pair['to']}")
    axis.set_xlabel(f"|weight| / rms at step {pair['from']}")
    axis.set_ylabel(f"|weight| / rms at step {pair['to']}")
    return image
